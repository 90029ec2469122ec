"""What the page of one latent shows: a few queries, none of them a list."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, cached_property
from html import unescape
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlencode

import numpy as np
from django.http import QueryDict
from django.utils.safestring import SafeString

from browser import charts, figures, pages
from browser.axes import Tick
from browser.contexts import FULL_TOKENS, OPEN_TOKENS, SENT, Drawn, Example, Row, around, draw, examples, part, weakest
from browser.queries import latent_near, training
from browser.queries.counterparts import Shown, counterparts
from browser.queries.latent_near import Misses, Neighbour
from browser.queries.latents import Stored, documents, stored, vocabulary, windows
from browser.queries.logit_meaning import LogitMeaning, meaning
from browser.queries.saes import ResolvedSae
from browser.queries.training import LatentTraining
from browser.tokens import Vocabulary, chip, chips
from sae_backend import packing
from sae_backend.packing import N_INTERVALS, RANDOM, TOP

LAYOUTS = {"kwic": "Concordance", "snip": "Snippet", "full": "Full"}
WEAKEST = -1  # not an interval of its own: the weakest of all kept examples
INTERVALS = {"top": TOP, **{f"b{i}": i for i in range(1, N_INTERVALS + 1)}, "rnd": RANDOM, "low": WEAKEST}
SHOWN_EFFECTS = 10
_TAG = re.compile("<[^>]*>")  # of tokens' markup, where what was in the text is escaped
SHOWN_WEAKEST = 10


@dataclass(frozen=True)
class View:
    """How a page is looked at: its query string, with what is unknown ignored and defaults left out."""

    interval: str = "top"
    layout: str = "kwic"
    whitespace: bool = False
    context: str = ""  # "<context>-<position>" of a row that is open

    @classmethod
    def of(cls, query: QueryDict) -> View:
        interval, layout = query.get("int", ""), query.get("view", "")
        return cls(
            interval if interval in INTERVALS else "top",
            layout if layout in LAYOUTS else "kwic",
            query.get("ws") == "1",
            query.get("ctx", ""),
        )

    def query(self, **changes: Any) -> str:
        """The query string, "" or beginning with "?", of this view with changes."""
        given = {**vars(self), **changes}
        context = given.pop("context")
        closed = _closed(**given)
        return f"{closed}{'&' if closed else '?'}{urlencode([('ctx', context)])}" if context else closed

    def turned(self, context: str) -> str:
        """The query string with this row opened, or closed where it is open; two numbers need no quoting."""
        closed = _closed(self.interval, self.layout, self.whitespace)
        return closed or "?" if context == self.context else f"{closed}{'&' if closed else '?'}ctx={context}"


@cache  # of few: intervals times layouts times two
def _closed(interval: str, layout: str, whitespace: bool) -> str:
    """The query string of a view in which no row is open."""
    given = ("int", interval, "top"), ("view", layout, "kwic"), ("ws", "1" if whitespace else "", "")
    query = urlencode([(name, value) for name, value, usual in given if value != usual])
    return f"?{query}" if query else ""


class Tab(NamedTuple):
    """A link to one interval's contexts."""

    key: str
    query: str
    current: bool
    firings: int
    shown: int  # examples kept


@dataclass(frozen=True)
class Choice:
    """A link to another layout."""

    key: str
    name: str
    query: str
    current: bool


@dataclass(frozen=True)
class Contexts:
    """The open interval of a latent."""

    template: ClassVar[str] = "browser/latent_contexts.html"
    view: View
    rows: list[tuple[Row, Drawn]]
    top: float  # the latent's largest activation
    decimals: int  # of printed activations
    firings: int  # in the interval


class Effect(NamedTuple):
    token: SafeString
    effect: str
    width: int  # per cent of the longest bar


@dataclass(frozen=True)
class LatentPage:
    """One latent."""

    template: ClassVar[str] = "browser/latent_detail.html"
    resolved: ResolvedSae
    index: int
    view: View
    before: int | None  # the nearest indices of latents that fired
    after: int | None
    status: str
    strongest: SafeString
    firings: int
    one_in: int  # tokens for one firing
    tokens: int  # counted
    bound: float | None  # of a dead latent's density
    strip: list[figures.Figure]
    shape: list[figures.Figure]
    weights: list[figures.Figure]
    chart: charts.ActivationChart | None
    tabs: dict[str, Tab]
    contexts: Contexts
    promoted: list[Effect]
    suppressed: list[Effect]
    logit_chart: charts.LogitChart | None
    misses: Misses | None
    meaning: LogitMeaning | None
    nearest: list[Neighbour]
    opposing: list[Neighbour]
    together: list[Neighbour]
    together_firings: int  # of its own, in their sample
    together_tokens: int  # of that
    counterparts: list[Shown]
    nearest_live: int | None  # the nearest latent that fired
    nearest_live_cos: float | None
    threshold: float | None
    training: LatentTraining | None = None  # of an SAE in a series

    @property
    def address(self) -> str:
        return self.resolved.address

    @property
    def neighbours(self) -> list[tuple[str, str, str, list[Neighbour]]]:
        """Lists: what they are sorted by, whom they have, what is beside that."""
        beside = "Jaccard" if self.together_firings else ""
        decoders = [
            ("cos", "Nearest decoders", beside, self.nearest),
            ("cos", "Most opposing decoders", beside, self.opposing),
        ]
        return [*decoders, ("Jaccard", "Fire together", "tokens", self.together)] if self.together else decoders

    @property
    def theta(self) -> Tick | None:
        """Its threshold on the axis of the histogram, where it has one of its own."""
        least, top = self.threshold or 0.0, self.contexts.top
        if not self.chart or not 0 < least <= top:
            return None
        return Tick(round(100 * least / top, 2), f"{least:.{self.contexts.decimals}f}")

    @property
    def pinned(self) -> str:
        """The address that names the run."""
        return self.resolved.pin

    @property
    def path(self) -> str:
        return f"{self.resolved.url}/{self.index}"

    @cached_property
    def says(self) -> str:
        """The latent in one sentence, for whoever sees only a link to it."""
        if self.dead:
            return f"It never fired on {self.tokens:,} tokens."
        words = _TAG.sub("", self.strongest.replace("><", "> · <"))
        return f"Strongest on {unescape(words)}; fires on 1 in {self.one_in:,} tokens."

    @property
    def picture(self) -> str:
        """The address of its card; another version of the site, or name, another."""
        return f"{self.resolved.pinned_url}/{self.index}/card.png?v={pages.version_of(self.resolved.sae)}"

    @cached_property
    def query(self) -> str:
        """What links to other latents keep of the view."""
        return self.view.query(context="")

    @property
    def layouts(self) -> list[Choice]:
        return [
            Choice(key, name, self.view.query(layout=key) or "?", key == self.view.layout)
            for key, name in LAYOUTS.items()
        ]

    @property
    def whitespace_query(self) -> str:
        return self.view.query(whitespace=not self.view.whitespace) or "?"

    @property
    def last(self) -> int:
        return self.resolved.sae.d_sae - 1

    @property
    def previous(self) -> int:
        """The one before it that fired; round the end it may be any."""
        return (self.index - 1) % self.resolved.sae.d_sae if self.before is None else self.before

    @property
    def next(self) -> int:
        return (self.index + 1) % self.resolved.sae.d_sae if self.after is None else self.after

    @property
    def bands(self) -> list[tuple[Tab, charts.Band]]:
        return [(self.tabs[f"b{b.number}"], b) for b in self.chart.bands] if self.chart else []

    @property
    def dead(self) -> bool:
        return self.status == "dead"

    @property
    def share(self) -> float:
        """Of the counted tokens, on which it fires."""
        return self.firings / self.tokens if self.tokens else 0.0


def contexts(resolved: ResolvedSae, index: int, view: View) -> Contexts:
    """Only the open interval, for the fragment."""
    return _contexts(resolved, stored(resolved, index), view)


def _contexts(resolved: ResolvedSae, latent: Stored, view: View) -> Contexts:
    run, lm, number = resolved.run, resolved.sae.lm, INTERVALS[view.interval]
    chosen = _chosen(latent, number)
    words = vocabulary(lm)
    found = examples(
        latent.examples, chosen, windows(run, lm.d_vocab, latent.examples.context[chosen]), words
    )
    names = documents(run, (e.document for e in found))
    top = latent.top
    drawn = [draw(words, e, _span(e, view, len(found)), top, view.whitespace) for e in found]
    rows = [(_row(e, top, names, view), d) for e, d in zip(found, drawn, strict=True)]
    return Contexts(view, rows, top, figures.decimals(top), latent.firings_in(number))


def _chosen(latent: Stored, number: int) -> list[int]:
    """Which of the kept examples an interval shows."""
    if number == WEAKEST:
        return weakest(latent.examples, SHOWN_WEAKEST)
    return np.flatnonzero(latent.examples.interval == number).tolist()


def _row(e: Example, top: float, names: dict[int, str], view: View) -> Row:
    act, is_open = float(e.acts[e.peak]), e.key == view.context
    return Row(
        key=e.key,
        act=act,
        share=round(100 * act / top) if top else 0,
        source=names.get(e.document, f"document {e.document}"),
        position=e.position,
        query=view.turned(e.key),
        open=is_open,
    )


def _span(e: Example, view: View, rows: int) -> tuple[int, int]:
    """Which tokens to send, so that a page stays small whatever the context length."""
    if e.key == view.context:
        return part(e, OPEN_TOKENS)
    return part(e, max(2 * SENT, FULL_TOKENS // rows)) if view.layout == "full" else around(e)


def page(resolved: ResolvedSae, index: int, view: View) -> LatentPage:
    """Everything that one latent's page shows."""
    latent, run, words = stored(resolved, index), resolved.run, vocabulary(resolved.sae.lm)
    values, quantiles = latent.values, run.summary.get("quantiles", {})
    chart = charts.activations(latent.histogram, latent.top) if values["firings"] and latent.top else None
    nearest, opposing, together = latent_near.neighbours(run, latent, words)
    promoted, suppressed = _effects(latent.logits, words)
    return LatentPage(
        resolved,
        index,
        view,
        before=latent.before,
        after=latent.after,
        status=values["status"],
        strongest=chips(words, latent.strongest),
        firings=values["firings"],
        one_in=round(1 / values["density"]) if values["density"] else 0,
        tokens=values["tokens"],
        bound=values["density_bound"],
        strip=figures.figures(figures.STRIP if values["firings"] else figures.DEAD_STRIP, values, quantiles),
        shape=figures.figures(figures.SHAPE, values, quantiles),
        weights=figures.figures(figures.WEIGHTS if values["firings"] else figures.DEAD_WEIGHTS, values, quantiles),
        chart=chart,
        tabs=_tabs(latent, view),
        contexts=_contexts(resolved, latent, view) if values["firings"] else Contexts(view, [], 0.0, 1, 0),
        misses=latent_near.misses(resolved, latent, view) if latent.misses else None,
        promoted=promoted,
        suppressed=suppressed,
        logit_chart=charts.logits(latent.logits, values["logit_std"]),
        meaning=meaning(run, values, latent.enrichment),
        nearest=nearest,
        opposing=opposing,
        together=together,
        together_firings=latent.together.own if latent.together else 0,
        together_tokens=latent.together.tokens if latent.together else 0,
        threshold=values["threshold"],
        counterparts=counterparts(resolved, index),
        nearest_live=values["nearest_live"],
        nearest_live_cos=values["nearest_live_cos"],
        training=None if resolved.pinned else training.latent(resolved, index),  # a pinned page stays as it is
    )


def _tabs(latent: Stored, view: View) -> dict[str, Tab]:
    """By key: the link to each interval, how often the latent fires in it, how many examples there are."""
    shown = np.bincount(latent.examples.interval, minlength=RANDOM + 2)  # its end, WEAKEST, comes last
    shown[WEAKEST] = SHOWN_WEAKEST if latent.values["firings"] > SHOWN_WEAKEST else 0
    return {
        key: Tab(
            key,
            view.query(interval=key, context="") or "?",
            key == view.interval,
            latent.firings_in(i),
            int(shown[i]),
        )
        for key, i in INTERVALS.items()
    }


def _effects(x: packing.Logits, words: Vocabulary) -> tuple[list[Effect], list[Effect]]:
    longest = max((abs(float(e)) for e in (*x.promoted_effect, *x.suppressed_effect)), default=0) or 1

    def side(ids: Any, effects: Any) -> list[Effect]:
        pairs = zip(ids.tolist(), effects.tolist(), strict=True)
        return [Effect(chip(words, t), _signed(e), round(100 * abs(e) / longest)) for t, e in pairs]

    n = SHOWN_EFFECTS
    return side(x.promoted[:n], x.promoted_effect[:n]), side(x.suppressed[:n], x.suppressed_effect[:n])


def _signed(x: float) -> str:
    return f"{x:+.2f}".replace("-", "\N{MINUS SIGN}")
