"""The latents of a comparison by class: counted, listed a page at a time, and exported, for any thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
from django.http import QueryDict
from django.utils.safestring import SafeString

from browser.queries.compare_classes import Both, Floats, other_side
from browser.queries.latents import neighbour_rows, vocabulary
from browser.tokens import chips
from sae_backend.core import matching
from sae_backend.core.matching import CLASSES, MATCH, MATCHED, MERGED, NEAR, NOVEL, RELATED, SPLIT, Side
from sae_backend.models import Sae

# A tab: class, and the SAE whose latents are listed ("": pairs, or groups).
TABS: dict[str, tuple[int, str]] = {
    "split": (SPLIT, ""), "matched": (MATCHED, ""), "merged": (MERGED, ""), "related-a": (RELATED, "a"),
    "related-b": (RELATED, "b"), "only-a": (NOVEL, "a"), "only-b": (NOVEL, "b"),
}  # fmt: skip
NAMES = {
    "split": "Split", "matched": "Matched", "merged": "Merged", "related-a": "Related in A",
    "related-b": "Related in B", "only-a": "Only in A", "only-b": "Only in B",
}  # fmt: skip
SORTS = {
    "cos": "cosine", "density": "density", "together": "firing together", "index": "index", "children": "children",
}  # fmt: skip
PAGE, GROUPS, CHILDREN = 50, 20, 12


@dataclass(frozen=True)
class Asked:
    """What an address asks of a comparison; what makes no sense is left out."""

    a: str
    b: str
    match: float = MATCH
    near: float = NEAR
    tab: str = "matched"
    sort: str = ""  # of SORTS, "-" before it for the largest first; "" is the tab's own
    after: str = ""  # value,index of the last row seen

    @classmethod
    def of(cls, query: QueryDict, a: Sae, b: Sae) -> Asked:
        tab, sort = query.get("tab", ""), query.get("sort", "")
        return cls(
            a.public_id, b.public_id, _between(query.get("match", ""), MATCH), _between(query.get("near", ""), NEAR),
            tab if tab in TABS else "matched", sort if sort.removeprefix("-") in SORTS else "",
            query.get("after", "")[:60],
        )  # fmt: skip

    def query(self, **changes: Any) -> str:
        """The query string of this view with changes, defaults left out."""
        x = replace(self, **changes)
        given = [("a", x.a), ("b", x.b)]
        given += [("match", f"{x.match:g}")] * (x.match != MATCH) + [("near", f"{x.near:g}")] * (x.near != NEAR)
        given += [("tab", x.tab)] * (x.tab != "matched") + [("sort", x.sort)] * bool(x.sort)
        return "?" + urlencode(given + [("after", x.after)] * bool(x.after), safe=",")

    @property
    def swapped(self) -> str:
        """The same with A and B exchanged."""
        turned = {"a": "b", "b": "a"}
        tab = self.tab[:-1] + turned[self.tab[-1]] if "-" in self.tab else self.tab
        return self.query(a=self.b, b=self.a, tab=tab, after="")

    @property
    def order(self) -> str:
        return self.sort or ("-children" if TABS[self.tab][1] == "" and self.tab != "matched" else "-cos")


def _between(text: str, default: float) -> float:
    try:
        value = float(text)
    except ValueError:
        return default
    return round(value, 4) if math.isfinite(value) and 0 <= value <= 1 else default


# ---- lists ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latent:
    """A latent in a list, its strongest tokens standing in for a label."""

    side: str
    address: str
    index: int
    tokens: SafeString
    density: float | None  # on the sample
    kind: str  # its class
    cos: float | None = None  # with its best counterpart
    together: float | None = None


@dataclass(frozen=True)
class Line:
    """One latent with its best counterpart, or a parent with the latents whose best it is."""

    first: Latent
    others: list[Latent]
    more: int = 0  # others that are not shown


@dataclass(frozen=True)
class List:
    """One page of a tab."""

    tab: str
    total: int
    lines: list[Line]
    parent: str  # the SAE that a line's first latent is of
    grouped: bool
    after: str  # where the next page begins; "" at the end
    size: int
    counts: list[tuple[str, str, int]]  # of each tab: key, name, how many

    def as_json(self) -> dict[str, Any]:
        lines = [{"first": _json(x.first), "others": [_json(y) for y in x.others], "more": x.more} for x in self.lines]
        return {"tab": self.tab, "total": self.total, "lines": lines, "next": self.after or None}


def _json(x: Latent) -> dict[str, Any]:
    known = {"sae": x.side, "index": x.index, "class": x.kind, "density": x.density}
    return known | {"cos": x.cos, "together": x.together}


def listed(found: Both, asked: Asked) -> List:
    """The page after the address's cursor."""
    code, side = TABS[asked.tab]
    grouped = asked.tab in ("split", "merged")
    parent = side or "a"
    if grouped:
        parent = found.smaller if code == SPLIT else other_side(found.smaller)
    keys, order = _sorted(found, asked, parent, code, grouped)
    size = GROUPS if grouped else PAGE
    begin = _begin(keys, order, asked)
    rows = order[begin : begin + size]
    last = rows[-1] if len(rows) else -1
    after = f"{float(keys[last])!r},{last}" if begin + size < len(order) else ""
    lines = _drawn(found, asked, parent, rows.tolist(), grouped)
    return List(asked.tab, len(order), lines, parent, grouped, after, size, _counts(found, asked))


def _counts(found: Both, asked: Asked) -> list[tuple[str, str, int]]:
    out = []
    for tab, (code, side) in TABS.items():
        if tab in ("split", "merged"):
            parents = found.groups(found.smaller if code == SPLIT else other_side(found.smaller), asked.near)
            n = int(parents.parent.sum())
        else:
            n = found.share(side or "a", code)[0]
        out.append((tab, NAMES[tab], n))
    return out


def _sorted(found: Both, asked: Asked, side: str, code: int, grouped: bool) -> tuple[Floats, npt.NDArray[np.intp]]:
    """What a list is sorted by, of every latent, and the list; kept for its next page until another is asked for."""
    wanted, last = (asked.tab, asked.order), found.kept.get("sorted")
    if last is None or last[0] != wanted:
        keys, at = _keys(found, asked, side, code, grouped)
        last = found.kept["sorted"] = wanted, keys, _ordered(keys, at, asked.order.startswith("-"))
    return last[1], last[2]


def _keys(found: Both, asked: Asked, side: str, code: int, grouped: bool) -> tuple[Floats, npt.NDArray[np.intp]]:
    """What a list is sorted by, of every latent, and which of them it has."""
    one, other = found.sides[side], found.sides[other_side(side)]
    name = asked.order.removeprefix("-")
    if grouped:
        children = found.groups(side, asked.near)
        at = np.flatnonzero(children.parent)
    else:
        at = np.flatnonzero(found.codes[side] == code)
    if name == "children":
        counts = np.bincount(other.counterpart[children.child], minlength=len(one.live)) if grouped else one.best_cos
        return counts.astype(np.float64), at
    if name == "density":
        return one.fires.astype(np.float64), at
    if name == "together":
        return np.nan_to_num(found.together(side), nan=-1.0), at
    if name == "index":
        return np.arange(len(one.live), dtype=np.float64), at
    return np.nan_to_num(one.best_cos.astype(np.float64), nan=-2.0), at


def _ordered(keys: Floats, at: npt.NDArray[np.intp], descending: bool) -> npt.NDArray[np.intp]:
    return at[np.lexsort((at, -keys[at] if descending else keys[at]))]


def _begin(keys: Floats, order: npt.NDArray[np.intp], asked: Asked) -> int:
    """The place after the cursor: what stands before (value, index) or at it was seen."""
    value, _, index = asked.after.rpartition(",")
    try:
        last = (float(value), int(index))
    except ValueError:
        return 0
    sign = -1 if asked.order.startswith("-") else 1
    ranked = sign * keys[order]
    return int(((ranked < sign * last[0]) | ((ranked == sign * last[0]) & (order <= last[1]))).sum())


def _drawn(found: Both, asked: Asked, parent: str, rows: list[int], grouped: bool) -> list[Line]:
    other = other_side(parent)
    below = {i: _children(found, parent, i, asked) if grouped else _best(found, parent, i) for i in rows}
    shown = {i: children[:CHILDREN] for i, children in below.items()}
    strongest = {parent: _strongest(found, parent, rows), other: _strongest(found, other, sum(shown.values(), []))}
    return [
        Line(
            _latent(found, parent, i, strongest[parent]),
            [_latent(found, other, j, strongest[other]) for j in shown[i]], len(below[i]) - len(shown[i]),
        )
        for i in rows
    ]  # fmt: skip


def _best(found: Both, side: str, index: int) -> list[int]:
    partner = int(found.sides[side].counterpart[index])
    return [partner] if partner >= 0 else []


def _children(found: Both, parent: str, index: int, asked: Asked) -> list[int]:
    """The latents whose best this one is, the largest cosine first."""
    one = found.sides[other_side(parent)]
    at = np.flatnonzero((one.counterpart == index) & one.live & (one.best_cos >= asked.near))
    return at[np.lexsort((at, -one.best_cos[at]))].tolist()


def _strongest(found: Both, side: str, indices: list[int]) -> dict[int, SafeString]:
    sae = found.saes[side]
    assert sae.current_run is not None
    said = neighbour_rows(sae.current_run, sorted(set(indices))) if indices else {}
    words = vocabulary(sae.lm)
    return {index: chips(words, row["strongest"]) for index, row in said.items()}


def _latent(found: Both, side: str, index: int, tokens: dict[int, SafeString]) -> Latent:
    one = found.sides[side]
    cos = float(one.best_cos[index])
    density = int(one.fires[index]) / found.tokens if found.tokens else None
    return Latent(
        side, found.saes[side].public_id, index, tokens.get(index, SafeString("")), density,
        CLASSES[found.codes[side][index]], None if math.isnan(cos) else round(cos, 6), _jaccard(found, side, index),
    )  # fmt: skip


def _jaccard(found: Both, side: str, index: int) -> float | None:
    one, other = found.sides[side], found.sides[other_side(side)]
    partner = int(one.counterpart[index])
    if partner < 0:
        return None
    both = int(one.both[index])
    union = int(one.fires[index]) + int(other.fires[partner]) - both
    return both / union if union else None


# ---- everything, for a file -------------------------------------------------------------------------

COLUMNS = (
    "sae", "index", "class", "fires", "best", "cos", "mutual", "best_fires", "both_fire", "jaccard", "second",
    "second_cos", "third", "third_cos",
)  # fmt: skip


def every(found: Both) -> Iterator[tuple[Any, ...]]:
    """All latents of A, then of B; `fires` counts tokens of the sample, what is undefined is empty."""
    for side in "ab":
        one, other, codes = found.sides[side], found.sides[other_side(side)], found.codes[side]
        mutual, together, partner = matching.mutual(one, other), found.together(side), one.counterpart
        for i in range(len(one.live)):
            j = int(partner[i])
            known = (int(other.fires[j]), int(one.both[i]), _plain(together[i])) if j >= 0 else ("", "", "")
            rest = [x for m in (1, 2) for x in _place(one, i, m)]
            yield (
                side, i, CLASSES[codes[i]], int(one.fires[i]), *_place(one, i, 0), int(mutual[i]), *known, *rest
            )  # fmt: skip


def _place(one: Side, i: int, m: int) -> tuple[Any, Any]:
    cos = _plain(one.cos[i, m])
    return ("", "") if cos == "" else (int(one.best[i, m]), cos)


def _plain(value: Any) -> float | str:
    return "" if math.isnan(value) else float(f"{value:.7g}")
