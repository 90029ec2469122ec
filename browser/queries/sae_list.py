"""The home page: SAEs by model and hook point, their frontier, and what is being computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.http import QueryDict
from django.urls import reverse

from browser import frontier_chart
from browser.frontier_chart import Place
from browser.queries.progress import Progress
from browser.queries.runs import unfinished
from browser.queries.saes import all_saes
from sae_backend.models import LanguageModel, Run, Sae, SaeImport

# Families share a mark on the frontier: class of colour, shape of _mark.html.
FAMILIES = {"relu": "k3", "standard": "k3", "tanh_relu": "k3", "gated": "k4", "jumprelu": "k2"}
ARCHITECTURES = {
    "topk": "TopK",
    "batchtopk": "BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "Gated",
    "groupmax": "GroupMax",
    "relu": "ReLU",
    "standard": "ReLU",
    "tanh_relu": "Tanh-ReLU",
    "matryoshka_batchtopk": "Matryoshka",
}


EXPORTED = (
    "id", "name", "architecture", "k", "d_in", "d_sae", "model", "hook_name", "dataset", "status", "run", "l0", "fvu",
    "ce_recovered", "dead", "updated", "url",
)  # fmt: skip
FOLDED = 6  # rows of a hook point shown of a sweep
SORTS: dict[str, Callable[[SaeRow], Any]] = {
    "name": lambda row: row.sae.name,
    "d_sae": lambda row: row.sae.d_sae,
    "l0": lambda row: row.l0,
    "fvu": lambda row: row.fvu,
    "ce": lambda row: row.ce_recovered,
    "dead": lambda row: row.dead_share,
    "updated": lambda row: row.updated,
}


@dataclass(frozen=True)
class Choice:
    """How the home page is looked at: its query string."""

    hook: str = ""  # whose frontier is drawn
    words: str = ""  # that narrow the table
    sort: str = ""  # of SORTS, "-" before it for the largest first; "" is by name
    every: bool = False  # no sweep is folded

    @classmethod
    def of(cls, query: QueryDict) -> Choice:
        sort = query.get("sort", "")
        known = sort if sort.removeprefix("-") in SORTS else ""
        return cls(query.get("hook", ""), query.get("q", ""), known, query.get("all") == "1")

    def query(self, **changes: Any) -> str:
        """The query string of this page with changes."""
        c = replace(self, **changes)
        given = (("hook", c.hook), ("q", c.words), ("sort", c.sort), ("all", "1" if c.every else ""))
        return "?" + urlencode([(name, value) for name, value in given if value])


@dataclass(frozen=True)
class Heading:
    """A column's head: the link that sorts by it, and how it is sorted now."""

    query: str
    order: str  # aria-sort, or ""


@dataclass(frozen=True)
class SaeRow:
    """An SAE in the table: figures of its live run, None where there is none or the run has not got them."""

    sae: Sae
    status: str  # ready, or what becomes of its newest run: queued, computing, failed
    progress: Progress | None
    summary: Mapping[str, Any]
    best: bool = False  # the lowest FVU at its hook point

    @property
    def kind(self) -> str:
        """Architecture and k as people write them: TopK 32."""
        return f"{self.family} {self.sae.k}" if self.sae.k else self.family

    @property
    def family(self) -> str:
        """Its architecture as people write it."""
        return ARCHITECTURES.get(self.sae.architecture, self.sae.architecture)

    @property
    def mark(self) -> str:
        return FAMILIES.get(self.sae.architecture, "k1")

    @property
    def l0(self) -> float | None:
        return self.summary.get("l0")

    @property
    def fvu(self) -> float | None:
        return self.summary.get("fvu")

    @property
    def ce_recovered(self) -> float | None:
        return (self.summary.get("ce") or {}).get("recovered")

    @property
    def dead(self) -> int | None:
        return (self.summary.get("counts") or {}).get("dead")

    @property
    def dead_share(self) -> float | None:
        return None if self.dead is None else self.dead / self.sae.d_sae

    @property
    def densities(self) -> list[int]:
        """Counts of the density histogram, four bins to a bar."""
        counts = (self.summary.get("density_histogram") or {}).get("counts") or []
        return [sum(counts[i : i + 4]) for i in range(0, len(counts), 4)]

    @property
    def updated(self) -> datetime:
        run = self.sae.current_run
        return (run.live_at if run else None) or self.sae.created_at

    def as_json(self) -> dict[str, Any]:
        sae = self.sae
        return {
            "id": sae.public_id,
            "name": sae.name,
            "slug": sae.slug,
            "architecture": sae.architecture,
            "d_in": sae.d_in,
            "d_sae": sae.d_sae,
            "k": sae.k,
            "hook_name": sae.hook_name,
            "model": sae.lm.name,
            "dataset": sae.current_run.dataset.name if sae.current_run else None,
            "status": self.status,
            "run": sae.current_run.number if sae.current_run else None,
            "l0": self.l0,
            "fvu": self.fvu,
            "ce_recovered": self.ce_recovered,
            "dead": self.dead,
            "updated": self.updated.isoformat(),
            "url": reverse("sae_detail", args=[sae.public_id]),
        }


@dataclass(frozen=True)
class Hook:
    """The SAEs at one hook point."""

    name: str
    rows: list[SaeRow]
    whole: bool = False  # a sweep is shown without being asked for

    @property
    def folded(self) -> int:
        """How many rows of a sweep stand behind a link."""
        return len(self.rows) - FOLDED if len(self.rows) > FOLDED + 2 and not self.whole else 0

    @property
    def shown(self) -> list[tuple[SaeRow, bool]]:
        """Each row, and whether it is folded away."""
        keep = len(self.rows) - self.folded
        best = sum(row.best for row in self.rows[keep:])  # the lowest FVU stays, in place of another
        return [(row, i >= keep - best and not row.best) for i, row in enumerate(self.rows)]


@dataclass(frozen=True)
class Model:
    """A language model with its hook points."""

    lm: LanguageModel
    hooks: list[Hook]

    @property
    def saes(self) -> int:
        return sum(len(hook.rows) for hook in self.hooks)


@dataclass(frozen=True)
class SaeList:
    """The home page."""

    models: list[Model]
    frontiers: list[frontier_chart.Frontier]  # hook points with at least two measured SAEs
    frontier: frontier_chart.Frontier | None
    running: list[Progress]
    failed_imports: int
    waiting_imports: int
    choice: Choice
    template: ClassVar[str] = "browser/sae_list.html"

    @property
    def heads(self) -> dict[str, Heading]:
        """By column: the smallest first, then the largest."""
        return {name: _heading(self.choice, name) for name in SORTS}

    @property
    def every_query(self) -> str:
        return self.choice.query(every=True)

    @property
    def families(self) -> list[str]:
        """Architectures in the table."""
        return sorted({row.family for row in self.rows})

    @property
    def rows(self) -> list[SaeRow]:
        return [row for model in self.models for hook in model.hooks for row in hook.rows]

    @property
    def shown(self) -> int:
        """Rows that are not folded away."""
        return sum(not folded for model in self.models for hook in model.hooks for _, folded in hook.shown)

    @property
    def latents(self) -> int:
        return sum(row.sae.d_sae for row in self.rows)

    @property
    def ready(self) -> list[SaeRow]:
        return [row for row in self.rows if row.status == "ready"]


def rows(jobs: Sequence[Progress] | None = None) -> list[SaeRow]:
    """Every SAE, by model, hook point and name; `jobs` are the unfinished ones where they are known."""
    running = {p.run.sae_id: p for p in reversed(unfinished() if jobs is None else jobs)}
    saes = list(all_saes().order_by("lm__name", "hook_name", "name", "pk"))
    failed = _failed(sae.pk for sae in saes if sae.current_run is None and sae.pk not in running)
    return _with_best([_row(sae, running.get(sae.pk), sae.pk in failed) for sae in saes])


def _row(sae: Sae, progress: Progress | None, failed: bool) -> SaeRow:
    if sae.current_run is not None:
        return SaeRow(sae, "ready", progress, sae.current_run.summary)
    if progress is not None:
        waiting = progress.run.state == Run.State.QUEUED
        return SaeRow(sae, "queued" if waiting else "computing", progress, {})
    return SaeRow(sae, "failed" if failed else "queued", None, {})


def _failed(saes: Iterable[int]) -> set[int]:
    """Those of the SAEs without a live or unfinished run that have a run which failed or was cancelled."""
    states = (Run.State.FAILED, Run.State.CANCELLED)
    wanted = list(saes)
    if not wanted:
        return set()
    return set(Run.objects.filter(sae_id__in=wanted, state__in=states).values_list("sae_id", flat=True))


def _with_best(found: list[SaeRow]) -> list[SaeRow]:
    """Mark the lowest FVU of each hook point that has several."""
    out: list[SaeRow] = []
    for _, group in groupby(found, key=_hook_key):
        members = list(group)
        measured = [row.fvu for row in members if row.fvu is not None]
        best = min(measured) if len(measured) > 1 else None
        out += [SaeRow(r.sae, r.status, r.progress, r.summary, r.fvu is not None and r.fvu == best) for r in members]
    return out


def _hook_key(row: SaeRow) -> tuple[int, str]:
    return row.sae.lm_id, row.sae.hook_name


def _heading(choice: Choice, name: str) -> Heading:
    here = choice.sort.removeprefix("-") == name
    order = ("descending" if choice.sort[0] == "-" else "ascending") if here else ""
    return Heading(choice.query(sort=f"-{name}" if choice.sort == name else name), order)


def page(choice: Choice) -> SaeList:
    """The home page."""
    running = unfinished()
    found = rows(running)
    frontiers = _frontiers(found)
    frontier = next((f for f in frontiers if f.key == choice.hook), None) or max(
        frontiers, key=lambda f: len(f.points), default=None
    )
    states = list(SaeImport.objects.exclude(state=SaeImport.State.DONE).values_list("state", flat=True))
    failed = states.count(SaeImport.State.FAILED)
    return SaeList(_models(found, choice), frontiers, frontier, running, failed, len(states) - failed, choice)


def _models(found: list[SaeRow], choice: Choice) -> list[Model]:
    models = []
    for _, group in groupby(found, key=lambda row: row.sae.lm_id):
        members = list(group)
        hooks = [
            Hook(name, _sorted(list(rows), choice.sort), choice.every)
            for name, rows in groupby(members, key=lambda row: row.sae.hook_name)
        ]
        models.append(Model(members[0].sae.lm, hooks))
    return models


def _sorted(rows: list[SaeRow], sort: str) -> list[SaeRow]:
    """What has no such figure comes last."""
    if not sort:
        return rows
    key = SORTS[sort.removeprefix("-")]
    measured = sorted((row for row in rows if key(row) is not None), key=key, reverse=sort[0] == "-")
    return measured + [row for row in rows if key(row) is None]


def _frontiers(found: list[SaeRow]) -> list[frontier_chart.Frontier]:
    """One chart for each model, hook point and data set with two measured SAEs or more."""
    by_place: dict[Place, list[frontier_chart.Point]] = {}
    for row in found:
        if row.l0 and row.fvu and row.sae.current_run:
            dataset = row.sae.current_run.dataset
            place = Place(row.sae.lm.name, hooks_of(row.sae), dataset.name, dataset.ctx_len)
            by_place.setdefault(place, []).append(_point(row))
    fvu = frontier_chart.METRICS["fvu"]
    return [frontier_chart.frontier(place, fvu, points) for place, points in by_place.items() if len(points) > 1]


def hooks_of(sae: Sae) -> str:
    """What it reads and, of a transcoder, what it writes."""
    return f"{sae.hook_name} → {sae.hook_name_out}" if sae.hook_name_out else sae.hook_name


def _point(row: SaeRow) -> frontier_chart.Point:
    url = reverse("sae_detail", args=[row.sae.public_id])
    line = f"{ARCHITECTURES.get(row.sae.architecture, row.sae.architecture)} {row.sae.d_sae}"
    mse = row.summary.get("normalised_mse")
    says = frontier_chart.in_words(row.l0, row.fvu, mse, row.ce_recovered, row.dead)
    return frontier_chart.Point(row.l0 or 0, row.fvu or 0, row.mark, row.sae.name, line, url, says)
