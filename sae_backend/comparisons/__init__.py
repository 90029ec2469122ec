"""Comparisons of two SAEs at the same hook point.

Free of torch but for worker.py, which carries one out. wishes.py takes what people ask for, packed.py reads what was
found; which latents are matched, split, merged or novel, core.matching tells from that.
"""

from __future__ import annotations

from sae_backend.comparisons.errors import ComparisonError
from sae_backend.comparisons.packed import Counterpart, sides, single
from sae_backend.comparisons.wishes import OPEN, again, ask, between, cancel, hold, outdated, touch, why_not

__all__ = [
    "OPEN", "ComparisonError", "Counterpart", "again", "ask", "between", "cancel", "hold", "outdated", "sides",
    "single", "touch", "why_not",
]  # fmt: skip
