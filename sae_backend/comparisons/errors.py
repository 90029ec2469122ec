"""What can go wrong with a comparison."""

from __future__ import annotations


class ComparisonError(Exception):
    """Two SAEs that cannot be compared, with a sentence that says why or what to do."""
