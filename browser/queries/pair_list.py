"""Pairs of latents whose decoder rows nearly oppose or resemble each other: a list of any length, page by page.

Each latent's ten nearest and most opposing others are stored. So a page takes some latents whose own best cosine is
beyond the bound, in the order asked for, and all their stored others beyond it; a pair that both have stands by the
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.db import connection
from django.urls import reverse
from django.utils.safestring import SafeString

from browser.errors import TooSlow
from browser.queries import latent_list
from browser.queries.geometry import expectation
from browser.queries.latent_list import Filter
from browser.queries.latents import vocabulary
from browser.queries.saes import ResolvedSae
from browser.tokens import Vocabulary, chips
from sae_backend import packing
from sae_backend.core import baseline
from sae_backend.models import STATUS_NAMES, Run, Sae

SIZE = 30  # latents whose pairs a page lists
BOUNDS = {"opposing": ("below", -0.7), "nearest": ("above", 0.7)}
SORTS = {
    "cos": "strongest first",
    "-density": "densest first",
    "density": "rarest first",
    "index": "by index",
}
PARAMETERS = ("side", "below", "above", "sort", "after")


@dataclass(frozen=True)
class Choice:
    """What an address asks for; parameters without sense are only named in `ignored`."""

    side: str = "opposing"
    bound: float = BOUNDS["opposing"][1]
    sort: str = "cos"
    after: tuple[float | None, int] | None = None
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Choice:
        ignored = [f"{name}={query[name]}" for name, among in (("side", BOUNDS), ("sort", SORTS))
                   if query.get(name) and query[name] not in among]  # fmt: skip
        side = query.get("side", "") if query.get("side") in BOUNDS else "opposing"
        name, usual = BOUNDS[side]
        bound = latent_list.read_number(query.get(name, ""))
        if bound is None or not -1 <= bound <= 1:
            ignored += [f"{name}={query[name]}"] if query.get(name) else []
            bound = usual
        sort = query.get("sort", "") if query.get("sort") in SORTS else "cos"
        new = cls(side, bound, sort)
        return replace(new, after=latent_list.read_cursor(query.get("after", ""), new.filter, ignored),
                       ignored=tuple(ignored))  # fmt: skip

    @property
    def column(self) -> str:
        return f"{self.side}_cos"

    @property
    def filter(self) -> Filter:
        """The latents with such a pair, in order; dead ones too."""
        strongest = self.column if self.side == "opposing" else f"-{self.column}"
        sort = {"cos": strongest}.get(self.sort, self.sort)
        ranges = (("to" if self.side == "opposing" else "from", self.bound),)
        return Filter(STATUS_NAMES, ranges, sort, self.after, by=self.column)

    def beyond(self, cos: float) -> bool:
        return cos <= self.bound if self.side == "opposing" else cos >= self.bound

    def query(self, **changes: Any) -> str:
        """The query string of this list with changes; defaults are left out."""
        new = replace(self, **changes)
        name, usual = BOUNDS[new.side]
        pairs = [("side", new.side)] if new.side != "opposing" else []
        pairs += [(name, repr(new.bound))] if new.bound != usual else []
        pairs += [("sort", new.sort)] if new.sort != "cos" else []
        pairs += [("after", latent_list.cursor_text(new.after))] if new.after else []
        return "?" + urlencode(pairs, safe=",") if pairs else "?"


@dataclass(frozen=True)
class Member:
    """One latent of a pair."""

    index: int
    status: str
    density: float
    strongest: list[int]
    cos: dict[str, float | None]  # its largest and smallest, by column
    others: dict[int, float]  # its nearest or most opposing and their cosines, the strongest first
    common: dict[int, int]  # sampled tokens on which it fires with each of those; empty in runs of before


@dataclass(frozen=True)
class Pair:
    """Two latents, that by which the list is ordered first."""

    cos: float
    first: Member
    second: Member

    @property
    def both(self) -> int | None:
        """Sampled tokens on which both fire."""
        return self.first.common.get(self.second.index, self.second.common.get(self.first.index))

    @property
    def mutual(self) -> bool:
        """Each is the other's nearest or most opposing."""
        return next(iter(self.first.others)) == self.second.index and next(iter(self.second.others)) == self.first.index


@dataclass(frozen=True)
class Pairs:
    """One page of the list."""

    pairs: list[Pair]
    latents: int  # that have such a pair, up to latent_list.COUNTED + 1
    after: tuple[float | None, int] | None


def pairs(run: Run, wanted: Choice, size: int = SIZE) -> Pairs:
    """The pairs of so many latents after the cursor. Raises TooSlow after settings.LIST_TIMEOUT_MS."""
    rows, matches = latent_list.listed(run.pk, wanted.filter, size)
    first = [row["index"] for row in rows.rows]
    members = _members(run, first, wanted.side)
    beyond = {j for i in first for j, cos in members[i].others.items() if wanted.beyond(cos)}
    members |= _members(run, sorted(beyond - members.keys()), wanted.side)
    found = [
        Pair(cos, members[i], members[j])
        for i in first
        for j, cos in members[i].others.items()
        if wanted.beyond(cos) and not _listed_before(members[j], members[i], wanted)
    ]
    return Pairs(found, matches or 0, rows.after)


def _listed_before(other: Member, own: Member, wanted: Choice) -> bool:
    """Whether the pair stands by the other latent, which has it too and comes first."""
    return own.index in other.others and _place(other, wanted) < _place(own, wanted)


def _place(member: Member, wanted: Choice) -> tuple[float, int]:
    """In the order of the list."""
    sort = wanted.filter.sort
    values = {"index": 0.0, "density": member.density, **member.cos}
    sign = -1 if sort.startswith("-") else 1
    return sign * float(values[sort.removeprefix("-")] or 0), sign * member.index


def _members(run: Run, indices: list[int], side: str) -> dict[int, Member]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select l.index, l.status, l.density, l.strongest, l.nearest_cos, l.opposing_cos, p.neighbours, p.cofiring"
            " from latent l join latent_page p on p.run_id = l.run_id and p.index = l.index"
            " where l.run_id = %s and p.run_id = %s and l.index = any(%s) and p.index = any(%s)",
            [run.pk, run.pk, indices, indices],
        )
        return {row[0]: _member(row, side) for row in cursor.fetchall()}


def _member(row: tuple[Any, ...], side: str) -> Member:
    index, status, density, strongest, near, far, blob, cofiring = row
    x, together = packing.unpack_neighbours(blob), packing.unpack_cofiring(cofiring)
    ids, cosines = (x.opposing, x.opposing_cos) if side == "opposing" else (x.nearest, x.nearest_cos)
    others = dict(zip(ids.tolist(), cosines.tolist(), strict=True))
    counts = getattr(together, side).tolist() if together else []
    common = dict(zip(ids.tolist(), counts, strict=True)) if counts else {}
    best = {"nearest_cos": near, "opposing_cos": far}
    return Member(index, STATUS_NAMES[status], density, strongest, best, others, common)


@dataclass(frozen=True)
class Row:
    """A pair as the table shows it."""

    pair: Pair
    tokens: tuple[SafeString, SafeString]
    again: bool  # its first latent is that of the row above

    @property
    def sides(self) -> tuple[tuple[Member, SafeString], ...]:
        return (self.pair.first, self.tokens[0]), (self.pair.second, self.tokens[1])

    @property
    def key(self) -> str:
        """As the address of its page has it, the lower latent first."""
        return "-".join(map(str, sorted((self.pair.first.index, self.pair.second.index))))


@dataclass(frozen=True)
class PairListPage:
    """The list of an SAE's pairs."""

    template: ClassVar[str] = "browser/pair_list.html"
    resolved: ResolvedSae
    wanted: Choice
    rows: list[Row]
    latents: int
    next: str | None
    too_slow: str

    @property
    def sae(self) -> Sae:
        return self.resolved.sae

    @property
    def run(self) -> Run:
        return self.resolved.run

    @property
    def many(self) -> bool:
        return self.latents > latent_list.COUNTED

    @property
    def counted(self) -> int:
        return latent_list.COUNTED

    @property
    def chance(self) -> float:
        """How many of as many random directions have such a pair."""
        return baseline.opposing(self.sae.d_sae, self.sae.d_out, -abs(self.wanted.bound))

    @property
    def expected(self) -> str:
        return expectation(self.chance)

    @property
    def opposing(self) -> bool:
        return self.wanted.side == "opposing"

    @property
    def bound_name(self) -> str:
        return BOUNDS[self.wanted.side][0]

    @property
    def sides(self) -> list[tuple[str, str, bool]]:
        names = {"opposing": "Opposing", "nearest": "Nearest"}
        here = self.wanted.side
        return [(text, Choice(side, BOUNDS[side][1]).query(), side == here) for side, text in names.items()]

    @property
    def sorts(self) -> list[tuple[str, str, bool]]:
        return [(name, text, name == self.wanted.sort) for name, text in SORTS.items()]

    @property
    def bounds(self) -> list[tuple[float, str, bool]]:
        sign = -1 if self.opposing else 1
        values = [sign * b for b in (0.9, 0.8, 0.7, 0.5, 0.3)]
        return [(b, self.wanted.query(bound=b, after=None), b == self.wanted.bound) for b in values]

    @property
    def query(self) -> str:
        """The list from its beginning."""
        return self.wanted.query(after=None)


def page(resolved: ResolvedSae, wanted: Choice) -> PairListPage:
    try:
        found = pairs(resolved.run, wanted)
    except TooSlow as error:
        return PairListPage(resolved, wanted, [], 0, None, error.sentence)
    words, before, rows = vocabulary(resolved.sae.lm), -1, []
    for pair in found.pairs:
        tokens = chips(words, pair.first.strongest), chips(words, pair.second.strongest)
        rows.append(Row(pair, tokens, pair.first.index == before))
        before = pair.first.index
    next_ = wanted.query(after=found.after) if found.after else None
    return PairListPage(resolved, wanted, rows, found.latents, next_, "")


def as_json(resolved: ResolvedSae, wanted: Choice) -> dict[str, Any]:
    """The same page as data; `next` leads on."""
    found, words = pairs(resolved.run, wanted), vocabulary(resolved.sae.lm)
    here = reverse("pair_list_json", args=[resolved.address])
    return {
        "sae": resolved.sae.public_id,
        "run": resolved.run.number,
        "side": wanted.side,
        BOUNDS[wanted.side][0]: wanted.bound,
        "latents": found.latents,
        "latents_of_random_directions": baseline.opposing(
            resolved.sae.d_sae, resolved.sae.d_out, -abs(wanted.bound)
        ),
        "pairs": [plain(pair, words) for pair in found.pairs],
        "next": here + wanted.query(after=found.after) if found.after else None,
        "ignored": list(wanted.ignored),
    }


def plain(pair: Pair, words: Vocabulary) -> dict[str, Any]:
    def member(m: Member) -> dict[str, Any]:
        return {"index": m.index, "status": m.status, "density": m.density,
                "strongest": [words.text(t) for t in m.strongest]}  # fmt: skip

    facts = {"cos": pair.cos, "mutual": pair.mutual, "both": pair.both}
    return facts | {"first": member(pair.first), "second": member(pair.second)}


def every(resolved: ResolvedSae, wanted: Choice, size: int = 500) -> Iterator[Pair]:
    """All pairs from the cursor on."""
    rest: Choice | None = wanted
    while rest is not None:
        found = pairs(resolved.run, rest, size)
        yield from found.pairs
        rest = replace(wanted, after=found.after) if found.after else None
