"""What an address calls an SAE: at least 6 of its identity's hexadecimal digits, perhaps pinned to a run; and what it
asks to be done with it."""

from __future__ import annotations

from django.urls.converters import StringConverter


class SaeConverter:
    """`3f9a0c` or `3f9a0c11d2e4@r3`, given to views as that text in lower case; queries.saes reads it."""

    regex = r"[0-9a-fA-F]{6,64}(?:@r[0-9]{1,9})?"

    def to_python(self, value: str) -> str:
        return value.lower()

    def to_url(self, value: str) -> str:
        return value


class ChangeConverter(StringConverter):
    """What may be done with an SAE."""

    regex = "rename|about|series|rerun|delete"


class KeepingConverter(StringConverter):
    """What may be done with a run that is over."""

    regex = "pin|unpin|drop"
