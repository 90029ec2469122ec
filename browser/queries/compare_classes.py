"""Two SAEs' latents with the classes that thresholds give them: worked out once, as long as they are asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from sae_backend import comparisons
from sae_backend.core import matching
from sae_backend.core.matching import DEAD, Codes, Groups, Side
from sae_backend.models import Comparison, Sae

BINS = 40  # of the histogram of cosines, from 0 to 1
KEPT = 4  # comparisons, and thresholds of any, in each process of the web server
_arrays: OrderedDict[tuple[int, int], tuple[Side, Side]] = OrderedDict()
_views: OrderedDict[tuple[Any, ...], dict[Any, Any]] = OrderedDict()  # Both.kept, the one used last at the end
_one = Lock()
Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Both:
    """Both SAEs' arrays as the page calls them, with the classes that its thresholds give."""

    saes: dict[str, Sae]
    sides: dict[str, Side]
    codes: dict[str, Codes]
    smaller: str  # "a" or "b"; of two as wide, A
    tokens: int  # of the sample
    kept: dict[Any, Any] = field(default_factory=dict, compare=False)  # what was worked out at these thresholds

    def share(self, side: str, code: int) -> tuple[int, float | None, float | None]:
        """Latents of a class, their share of those that fired, and of all firing on the sample."""
        return _once(self.kept, ("share", side, code), lambda: self._share(side, code))

    def _share(self, side: str, code: int) -> tuple[int, float | None, float | None]:
        here, fires = self.codes[side] == code, self.sides[side].fires
        n, live, total = int(here.sum()), int(self.sides[side].live.sum()), int(fires.sum(dtype=np.int64))
        firing = int(fires[here].sum(dtype=np.int64)) / total if total else None
        return n, (n / live if live and code != DEAD else None), firing

    def cosines(self, side: str) -> list[int]:
        """How many latents that fired have which best cosine, in BINS from 0 to 1; negative ones in the first."""
        return _once(self.kept, ("cosines", side), lambda: self._cosines(side))

    def _cosines(self, side: str) -> list[int]:
        one = self.sides[side]
        cos = one.best_cos[one.live & ~np.isnan(one.best_cos)]
        counts: list[int] = np.bincount((cos.clip(0, 0.99999) * BINS).astype(int), minlength=BINS).tolist()
        return counts

    def groups(self, parent: str, near: float) -> Groups:
        """Latents of one SAE that are the best of two or more of the other's, and those."""
        n, other = len(self.sides[parent].live), self.sides[other_side(parent)]
        return _once(self.kept, ("groups", parent, near), lambda: matching.groups(other, n, near))

    def histogram(self, side: str) -> dict[str, Any]:
        return {"low": 0.0, "high": 1.0, "counts": self.cosines(side)}

    def together(self, side: str) -> Floats:
        """[n], Jaccard of the firing sets of each latent and its best counterpart on the sample."""
        one, other = self.sides[side], self.sides[other_side(side)]
        partner = one.counterpart
        theirs = np.append(other.fires, 0).astype(np.int64)[partner]
        union = one.fires.astype(np.int64) + theirs - one.both
        return np.where((partner >= 0) & (union > 0), one.both / np.maximum(union, 1), np.nan)


def other_side(side: str) -> str:
    return "b" if side == "a" else "a"


def both(row: Comparison, a: Sae, b: Sae, match: float, near: float) -> Both | None:
    """The arrays and their classes, from memory where they are: those of one attempt never change."""
    if row.state != Comparison.State.DONE or (arrays := _read(row)) is None:
        return None
    turned = row.a_id != a.pk
    sides = dict(zip("ba" if turned else "ab", arrays, strict=True))
    smaller = "b" if b.d_sae < a.d_sae else "a"
    kept = _view(row.pk, row.attempts, turned, match, near)
    codes = _once(kept, "codes", lambda: _classified(sides, smaller, match, near))
    return Both({"a": a, "b": b}, sides, codes, smaller, int(row.summary.get("tokens") or 0), kept)


def _classified(sides: dict[str, Side], smaller: str, match: float, near: float) -> dict[str, Codes]:
    found = matching.classify(sides[smaller], sides[other_side(smaller)], match, near)
    return {smaller: found[0], other_side(smaller): found[1]}


def _view(*key: Any) -> dict[Any, Any]:
    """What is known of an attempt at these thresholds, filled as it is asked for; those asked for last are kept."""
    with _one:
        found = _views.setdefault(key, {})
        _views.move_to_end(key)
        while len(_views) > KEPT:
            _views.popitem(last=False)
    return found


def _once(kept: dict[Any, Any], key: Any, make: Callable[[], T]) -> T:
    """Two requests at a time may both make it; it is the same."""
    if key not in kept:
        kept[key] = make()
    made: T = kept[key]
    return made


def _read(row: Comparison) -> tuple[Side, Side] | None:
    key = row.pk, row.attempts
    with _one:
        found = _arrays.get(key)
    if found is None and (found := comparisons.sides(row.pk)) is not None:
        with _one:
            _arrays[key] = found
            while len(_arrays) > KEPT:
                _arrays.popitem(last=False)
    return found
