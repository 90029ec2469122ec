"""An SAE's page: what it is, its run's figures, its densities, its latents and its opposing pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from django.db import connection
from django.urls import reverse
from django.utils.safestring import SafeString

from browser import pages, plots
from browser.errors import TooSlow
from browser.layer_chart import LayerChart, layers
from browser.logit_classes import CLASSES, LogitClass
from browser.queries import latent_list
from browser.queries.columns import BY_NAME, COLUMNS, INDEX, SHOWN, Column
from browser.queries.geometry import Geometry, geometry_of
from browser.queries.latent_list import Filter, Rows
from browser.queries.latents import neighbour_rows, vocabulary, with_tokens
from browser.queries.progress import Progress
from browser.queries.runs import RunPage
from browser.queries.sae_list import ARCHITECTURES
from browser.queries.saes import ResolvedSae
from browser.tokens import Vocabulary, chip, chips
from sae_backend import packing
from sae_backend.models import STATUS_NAMES, Run, Sae

PAIRS = 6  # opposing pairs shown


@dataclass(frozen=True)
class Heading:
    """A column's head: a link that sorts by it, and what hides it where there is little room."""

    column: Column
    query: str
    order: str  # aria-sort: descending, ascending or nothing
    css: str


@dataclass(frozen=True)
class Table:
    """One page of the SAE's latents."""

    filter: Filter
    columns: list[Column]
    rows: list[dict[str, Any]]
    next: str | None  # query string of the next page
    matches: int | None  # None where the whole SAE is listed
    too_slow: str  # what to do when the database gave up
    size: int = latent_list.PAGE
    counted: int = latent_list.COUNTED

    @property
    def many(self) -> bool:
        return (self.matches or 0) > latent_list.COUNTED

    @property
    def query(self) -> str:
        """This list from its beginning, as a query string."""
        return self.filter.query(after=None)

    @property
    def index(self) -> Heading:
        return self._heading(INDEX)

    @property
    def density(self) -> Heading:
        return self._heading(BY_NAME["density"])

    @property
    def headings(self) -> list[Heading]:
        return [self._heading(column) for column in self.columns]

    def _heading(self, column: Column) -> Heading:
        """Largest first, but the smallest index; a second click turns it round."""
        first = column.name if column is INDEX else f"-{column.name}"
        other = f"-{column.name}" if column is INDEX else column.name
        here = self.filter.column is column
        order = ("descending" if self.filter.descending else "ascending") if here else ""
        query = self.filter.query(sort=other if self.filter.sort == first else first, after=None)
        return Heading(column, query, order, _css(column, self.filter))

    @property
    def cleared(self) -> str:
        return self.filter.query(status=(), ranges=(), by="", token="", of="", logit_class="", after=None) or "?"

    @property
    def unknown_token(self) -> str:
        """The token asked for, where the vocabulary has none of that text."""
        return self.filter.token if self.filter.ids == () else ""

    @property
    def low(self) -> str:
        """Of the statistic chosen freely."""
        return self._bound("from")

    @property
    def high(self) -> str:
        return self._bound("to")

    @property
    def dmin(self) -> str:
        return self._bound("dmin")

    @property
    def dmax(self) -> str:
        return self._bound("dmax")

    @property
    def kmin(self) -> str:
        return self._bound("kmin")

    @property
    def kmax(self) -> str:
        return self._bound("kmax")

    def _bound(self, name: str) -> str:
        bound = self.filter.bound(name)
        return "" if bound is None else f"{bound:g}"


def _css(column: Column, wanted: Filter) -> str:
    """The class that hides a column where there is little room; the one sorted by stays."""
    if wanted.column is column:
        return ""
    return "p3" if column.name == "encoder_decoder_cos" else "p2"


@dataclass(frozen=True)
class Side:
    """One latent of a pair, its strongest tokens standing in for a label."""

    index: int
    density: float | None
    tokens: SafeString


@dataclass(frozen=True)
class Pair:
    """Two latents of nearly opposite directions."""

    cos: float
    first: Side
    second: Side

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.first, self.second


@dataclass(frozen=True)
class SaePage:
    """Its charts and pairs are worked out where the template draws them, once a run."""

    resolved: ResolvedSae
    table: Table
    newer: Run | None  # a run that will take this one's place
    template: ClassVar[str] = "browser/sae_detail.html"

    @property
    def sae(self) -> Sae:
        return self.resolved.sae

    @property
    def run(self) -> Run:
        return self.resolved.run

    @property
    def summary(self) -> Mapping[str, Any]:
        return self.run.summary

    @property
    def architecture(self) -> str:
        return ARCHITECTURES.get(self.sae.architecture, self.sae.architecture)

    @property
    def opposing(self) -> dict[str, int | None]:
        counts = self.summary.get("opposing") or {}
        return {"seven": counts.get("-0.7"), "nine": counts.get("-0.9")}

    @property
    def picture(self) -> str:
        """The address of its card; another version of the site, or name, another."""
        return f"{reverse('sae_card', args=[self.resolved.pin])}?v={pages.version_of(self.sae)}"

    @property
    def says(self) -> str:
        """The SAE in one sentence, for whoever sees only a link to it."""
        measured = "" if self.summary.get("fvu") is None else f"; FVU {self.summary['fvu']:.3f}"
        return f"{self.sae.d_sae:,} latents at {self.sae.hook_name} of {self.sae.lm.name}{measured}."

    @property
    def has_scatter(self) -> bool:
        return any(map(any, (self.summary.get("scatter") or {}).get("counts") or []))

    @cached_property
    def densities(self) -> plots.Distribution | None:
        expected = (self.summary.get("l0") or self.sae.k or 0) / self.sae.d_sae
        return plots.densities(self.summary, expected)

    @cached_property
    def scatter(self) -> plots.ScatterChart | None:
        return plots.scatter(self.summary)

    @cached_property
    def l0(self) -> plots.L0Chart | None:
        return plots.l0(self.summary)

    @cached_property
    def layers(self) -> LayerChart | None:
        return layers(self.summary, self.sae.hook_name)

    @cached_property
    def pairs(self) -> list[Pair]:
        return opposing_pairs(self.resolved)

    @property
    def geometry(self) -> Geometry:
        return geometry_of(self.sae, self.summary)

    @property
    def run_number(self) -> str:
        return str(self.run.number)

    @property
    def logit_classes(self) -> tuple[LogitClass, ...]:
        return CLASSES

    @property
    def statuses(self) -> list[tuple[str, int | None, bool]]:
        """Each status with its count in the run, and whether the list has it."""
        counts = self.summary.get("counts") or {}
        return [(name, counts.get(name), name in self.table.filter.statuses) for name in reversed(STATUS_NAMES)]


@dataclass(frozen=True)
class SaeProgress:
    """The page of an SAE none of whose runs is live."""

    sae: Sae
    job: RunPage | None
    template: ClassVar[str] = "browser/sae_progress.html"

    @property
    def progress(self) -> Progress | None:
        return self.job.progress if self.job else None

    @property
    def architecture(self) -> str:
        return ARCHITECTURES.get(self.sae.architecture, self.sae.architecture)


def page(resolved: ResolvedSae, wanted: Filter, newer: Run | None) -> SaePage:
    """The whole page; its table may have been too slow without taking the rest with it."""
    return SaePage(resolved, table(resolved, with_tokens(wanted, resolved.sae.lm)), newer)


def table(resolved: ResolvedSae, wanted: Filter) -> Table:
    columns = [*SHOWN, *([wanted.column] if wanted.column.name not in _always_shown() else [])]
    run = resolved.run.pk
    try:
        found, matches = latent_list.listed(run, wanted)
    except TooSlow as error:
        return Table(wanted, columns, [], None, None, error.sentence)
    words = vocabulary(resolved.sae.lm)
    next_ = wanted.query(after=found.after) if found.after else None
    cells = [(column, _css(column, wanted)) for column in columns]
    rows = [_drawn(row, words, cells) for row in found.rows]
    return Table(wanted, columns, rows, next_, matches, "")


def _always_shown() -> set[str]:
    return {"index", "density", *(column.name for column in SHOWN)}


def _drawn(row: dict[str, Any], words: Vocabulary, columns: list[tuple[Column, str]]) -> dict[str, Any]:
    """The row with tokens as chips, the strongest three by falling rank, and a cell for each column."""
    strongest = [chip(words, token, 3 - rank) for rank, token in enumerate(row["strongest"][:3])]
    promoted = [chip(words, token) for token in row["promoted"][:1]]
    cells = [(row[column.name], column.style, css) for column, css in columns]
    return row | {"strongest": strongest, "promoted": promoted, "cells": cells}


def opposing_pairs(resolved: ResolvedSae) -> list[Pair]:
    """The pairs of smallest decoder cosine, each once; partners are in the packed neighbours."""
    run = resolved.run
    with connection.cursor() as cursor:
        cursor.execute(
            "select l.index, l.opposing_cos, p.neighbours from ("
            ' select "index", opposing_cos from latent where run_id = %s and status > 0'
            " and opposing_cos is not null order by opposing_cos, index limit %s"
            ") l join latent_page p on p.run_id = %s and p.index = l.index order by l.opposing_cos, l.index",
            [run.pk, 3 * PAIRS, run.pk],
        )
        rows = cursor.fetchall()
    found: dict[frozenset[int], tuple[float, int, int]] = {}
    for index, cos, blob in rows:
        for other in packing.unpack_neighbours(blob).opposing[:1].tolist():
            found.setdefault(frozenset((index, other)), (cos, index, other))
    return _pairs(resolved, list(found.values())[:PAIRS])


def _pairs(resolved: ResolvedSae, found: list[tuple[float, int, int]]) -> list[Pair]:
    said = neighbour_rows(resolved.run, [index for _, *both in found for index in both]) if found else {}
    words = vocabulary(resolved.sae.lm)

    def side(index: int) -> Side:
        row = said.get(index, {})
        return Side(index, row.get("density"), chips(words, row.get("strongest", [])))

    return [Pair(cos, side(first), side(second)) for cos, first, second in found]


def as_json(resolved: ResolvedSae) -> dict[str, Any]:
    """Everything the page says of the SAE and its run, for programs."""
    sae, run, address = resolved.sae, resolved.run, resolved.address
    return {
        "id": sae.public_id,
        "sha256": sae.sha256,
        "name": sae.name,
        "slug": sae.slug,
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "k": sae.k,
        "model": sae.lm.name,
        "hook_name": sae.hook_name,
        "about": sae.about,
        "run": {
            "number": run.number,
            "state": run.state,
            "dataset": run.dataset.name,
            "ctx_len": run.dataset.ctx_len,
            "config": run.config,
            "live": run.live_at.isoformat() if run.live_at else None,
        },
        "summary": {name: figure for name, figure in run.summary.items() if name != "scatter"},
        "columns": {column.name: column.means for column in COLUMNS},
        "url": reverse("sae_detail", args=[address]),
        "latents": reverse("sae_latents_json", args=[address]),
        "csv": reverse("sae_latents_csv", args=[address]),
        "scatter": reverse("sae_scatter_json", args=[address]),
    }


def progress_json(sae: Sae, progress: Progress | None) -> dict[str, Any]:
    """What there is of an SAE without a live run."""
    about = {"id": sae.public_id, "name": sae.name, "d_sae": sae.d_sae, "model": sae.lm.name}
    return {**about, "hook_name": sae.hook_name, "run": None, "job": progress.as_json() if progress else None}


def latents_json(resolved: ResolvedSae, wanted: Filter, size: int) -> dict[str, Any]:
    """One page of the table: numbers as stored, tokens as text, and the address of the next page."""
    found: Rows = latent_list.page(resolved.run.pk, with_tokens(wanted, resolved.sae.lm), size)
    words, here = vocabulary(resolved.sae.lm), reverse("sae_latents_json", args=[resolved.address])
    query = wanted.query(after=found.after) if found.after else ""
    next_ = here + query + (f"&limit={size}" if size != latent_list.PAGE else "") if query else None
    return {
        "latents": [_plain(row, words) for row in found.rows],
        "next": next_,
        "ignored": list(wanted.ignored),
    }


def _plain(row: dict[str, Any], words: Vocabulary) -> dict[str, Any]:
    tokens = {name: [words.text(token) for token in row[name]] for name in ("strongest", "promoted")}
    return {**row, **tokens, "spark": list(row["spark"])}
