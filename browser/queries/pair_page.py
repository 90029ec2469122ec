"""Two latents of an SAE side by side: what each fires on, and how their decoder rows lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from django.urls import reverse
from django.utils.safestring import SafeString

from browser import figures
from browser.errors import Link, NotFound
from browser.queries import latent_data, latent_page
from browser.queries.latent_page import Contexts, View
from browser.queries.latents import Stored, stored, vocabulary
from browser.queries.saes import ResolvedSae
from browser.tokens import chips

SHOWN = 10  # contexts of each
FACTS = figures.STRIP[1:]  # density has a style of its own


@dataclass(frozen=True)
class Side:
    """One of the two."""

    index: int
    status: str
    density: float
    strongest: SafeString
    promoted: SafeString
    figures: list[figures.Figure]
    contexts: Contexts
    rank: str  # of the other among its nearest or most opposing


@dataclass(frozen=True)
class PairPage:
    template: ClassVar[str] = "browser/pair_detail.html"
    resolved: ResolvedSae
    cos: float | None
    first: Side
    second: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second

    @property
    def kind(self) -> str:
        return "nearest" if (self.cos or 0) > 0 else "opposing"

    @property
    def list_query(self) -> str:
        """Of the list that such a pair is in."""
        return "?side=nearest" if self.kind == "nearest" else ""


def page(resolved: ResolvedSae, first: int, second: int) -> PairPage:
    one, other = _both(resolved, first, second)
    sides = (_side(resolved, first, one, second), _side(resolved, second, other, first))
    return PairPage(resolved, _cosine(one, second, other, first), *sides)


def _both(resolved: ResolvedSae, first: int, second: int) -> tuple[Stored, Stored]:
    if first == second:
        link = Link(f"latent {first}", reverse("latent_detail", args=[resolved.address, first]))
        raise NotFound("One latent is no pair", "The address of a pair has two different latents.", [link])
    return stored(resolved, first), stored(resolved, second)


def _side(resolved: ResolvedSae, index: int, latent: Stored, other: int) -> Side:
    words, values, run = vocabulary(resolved.sae.lm), latent.values, resolved.run
    return Side(
        index,
        values["status"],
        values["density"],
        chips(words, latent.strongest),
        chips(words, latent.logits.promoted[:3].tolist()),
        figures.figures(FACTS, values, run.summary.get("quantiles", {})),
        _contexts(resolved, index),
        _rank(latent, other),
    )


def _contexts(resolved: ResolvedSae, index: int) -> Contexts:
    """The strongest few in snippets; each leads to the latent's own page, opened there."""
    view = View(layout="snip")
    found = latent_page.contexts(resolved, index, view)
    path = reverse("latent_detail", args=[resolved.address, index])
    rows = [(row._replace(query=path + row.query), drawn) for row, drawn in found.rows[:SHOWN]]
    return replace(found, rows=rows)


def _rank(latent: Stored, other: int) -> str:
    x = latent.neighbours
    for name, ids in (("most opposing", x.opposing.tolist()), ("nearest", x.nearest.tolist())):
        if other in ids:
            place = ids.index(other) + 1
            return name if place == 1 else f"{figures.ordinal(place)} {name}"
    return ""


def _cosine(one: Stored, other_index: int, other: Stored, own_index: int) -> float | None:
    """Of their decoder rows; None where neither has the other among its neighbours."""
    for latent, wanted in ((one, other_index), (other, own_index)):
        x = latent.neighbours
        for ids, cosines in ((x.opposing, x.opposing_cos), (x.nearest, x.nearest_cos)):
            found = (ids == wanted).nonzero()[0]
            if len(found):
                return float(cosines[found[0]])
    return None


def as_json(resolved: ResolvedSae, first: int, second: int) -> dict[str, Any]:
    """Both latents whole, as their own .json has them."""
    one, other = _both(resolved, first, second)
    return {
        "sae": resolved.sae.public_id,
        "run": resolved.run.number,
        "cos": _cosine(one, second, other, first),
        "ranks": [_rank(one, second) or None, _rank(other, first) or None],
        "latents": [latent_data.data(resolved, index) for index in (first, second)],
    }
