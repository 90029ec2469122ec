"""What an address calls an SAE: at least 6 of its identity's hexadecimal digits, perhaps pinned to a run."""

from __future__ import annotations


class SaeConverter:
    """`3f9a0c` or `3f9a0c11d2e4@r3`, given to views as that text in lower case; queries.saes reads it."""

    regex = r"[0-9a-fA-F]{6,64}(?:@r[0-9]{1,9})?"

    def to_python(self, value: str) -> str:
        return value.lower()

    def to_url(self, value: str) -> str:
        return value
