"""What can go wrong with a wish."""

from __future__ import annotations


class AdditionError(Exception):
    """A wish that cannot be granted, with a sentence that says what to do."""
