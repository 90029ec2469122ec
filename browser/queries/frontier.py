"""The frontier: reconstruction against L0 of all runs that can be compared, and what other k would give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.http import QueryDict
from django.urls import reverse

from browser import frontier_chart
from browser.frontier_chart import METRICS, Frontier, Metric, Place, Point
from browser.queries.sae_list import ARCHITECTURES, FAMILIES
from browser.queries.saes import READABLE
from sae_backend.models import Run, Sae

FIGURES = ("l0", "fvu", "normalised_mse")
CSV = (
    "sae", "name", "architecture", "d_sae", "k", "run", "tokens", "at_k", "l0", "fvu", "normalised_mse", "ce_recovered",
    "dead", "pareto", "url",
)  # fmt: skip
_IN_SUMMARY = (*FIGURES, "ce__recovered", "counts__dead", "tokens", "k_curve")
_FIELDS = (
    "pk", "number", "aside", "sae_id", "sae__current_run_id", "sae__sha256", "sae__name", "sae__architecture",
    "sae__d_sae", "sae__k", "sae__hook_name", "sae__hook_name_out", "sae__lm__name", "dataset__name",
    "dataset__ctx_len", *(f"summary__{name}" for name in _IN_SUMMARY),
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What of the frontier is looked at: its query string, with what is unknown ignored."""

    metric: Metric = METRICS["fvu"]
    place: str = ""  # Place.key; "" is that of most runs
    families: tuple[str, ...] = ()  # architectures as people write them; none given is all
    widths: tuple[int, ...] = ()
    sae: str = ""  # public id of the one that stands out
    with_k: bool = True

    @classmethod
    def of(cls, query: QueryDict) -> Choice:
        widths = [int(w) for w in query.getlist("d_sae") if w.isdecimal() and len(w) < 10]
        return cls(
            METRICS.get(query.get("metric", ""), METRICS["fvu"]), query.get("hook", ""), tuple(query.getlist("arch")),
            tuple(widths), query.get("sae", ""), query.get("k") != "0",
        )  # fmt: skip

    def query(self, **changes: Any) -> str:
        """The query string of this page with changes, defaults left out."""
        c = replace(self, **changes)
        given = [("metric", c.metric.key if c.metric.key != "fvu" else ""), ("hook", c.place)]
        given += [("arch", name) for name in c.families] + [("d_sae", str(width)) for width in c.widths]
        given += [("sae", c.sae), ("k", "" if c.with_k else "0")]
        query = urlencode([(name, value) for name, value in given if value])
        return f"?{query}" if query else ""


@dataclass(frozen=True)
class Measured:
    """A run with all its figures."""

    place: Place
    sae: str  # public id
    name: str
    architecture: str
    d_sae: int
    k: int | None
    number: int
    address: str  # after /s/
    tokens: int | None
    l0: float | None
    fvu: float | None
    normalised_mse: float | None
    ce: float | None
    dead: int | None
    curve: tuple[tuple[int, float, float | None, float | None], ...]  # k', L0, FVU, normalised MSE

    @property
    def family(self) -> str:
        return ARCHITECTURES.get(self.architecture, self.architecture)

    @property
    def kind(self) -> str:
        return f"{self.family} {self.k}" if self.k else self.family

    @property
    def mark(self) -> str:
        return FAMILIES.get(self.architecture, "k1")

    @property
    def url(self) -> str:
        return reverse("sae_detail", args=[self.address])

    @property
    def says(self) -> str:
        return frontier_chart.in_words(self.l0, self.fvu, self.normalised_mse, self.ce, self.dead)

    def as_json(self, best: bool) -> dict[str, Any]:
        keys = ("k", "l0", "fvu", "normalised_mse")
        return {
            "sae": self.sae, "name": self.name, "architecture": self.architecture, "d_sae": self.d_sae, "k": self.k,
            "run": self.number, "tokens": self.tokens, "l0": self.l0, "fvu": self.fvu,
            "normalised_mse": self.normalised_mse, "ce_recovered": self.ce, "dead": self.dead, "pareto": best,
            "url": self.url, "k_curve": [dict(zip(keys, point, strict=True)) for point in self.curve],
        }  # fmt: skip


@dataclass(frozen=True)
class FrontierPage:
    """The page: a chart, and the same points as a table."""

    choice: Choice
    places: list[Place]
    place: Place | None
    members: list[Measured]  # of the place, whatever else is chosen
    rows: list[tuple[Measured, bool]]  # those chosen, and whether they are Pareto-optimal
    chart: Frontier | None
    template: ClassVar[str] = "browser/frontier.html"

    @property
    def metrics(self) -> list[Metric]:
        return list(METRICS.values())

    @property
    def families(self) -> list[tuple[str, bool]]:
        """Architectures here, and whether they are asked for by name."""
        return [(name, name in self.choice.families) for name in sorted({m.family for m in self.members})]

    @property
    def widths(self) -> list[tuple[int, bool]]:
        return [(width, width in self.choice.widths) for width in sorted({m.d_sae for m in self.members})]

    @property
    def curved(self) -> list[Measured]:
        """Those with a curve, for the table of other k."""
        return [m for m, _ in self.rows if m.curve]

    @property
    def query(self) -> str:
        return self.choice.query()

    @property
    def every_query(self) -> str:
        """The same with all architectures and widths."""
        return self.choice.query(families=(), widths=()) or "?"

    def as_json(self) -> dict[str, Any]:
        place = self.place
        return {
            "model": place and place.lm, "hook_name": place and place.hook, "dataset": place and place.dataset,
            "ctx_len": place and place.ctx_len, "metric": self.choice.metric.key,
            "points": [m.as_json(best) for m, best in self.rows],
            "places": [p.key for p in self.places],
        }  # fmt: skip


def page(choice: Choice) -> FrontierPage:
    found = measured()
    places = sorted({m.place for m in found}, key=lambda p: p.key)
    here = next((p for p in places if p.key == choice.place), None) or max(
        places, key=lambda p: sum(m.place == p for m in found), default=None
    )
    members = [m for m in found if m.place == here]
    chosen = [m for m in members if _wanted(m, choice)]
    metric = choice.metric
    points = {m.address: point for m in chosen if (point := _point(m, choice))}
    best = {p.url for p in frontier_chart.pareto(list(points.values()), metric)}
    chart = frontier_chart.frontier(here, metric, list(points.values()), choice.with_k) if here and points else None
    return FrontierPage(choice, places, here, members, [(m, m.url in best) for m in chosen], chart)


def between(a: Sae, b: Sae) -> Frontier | None:
    """FVU against L0 where both SAEs are, the two marked A and B; None unless both were measured on the same text."""
    found = {m.address: m for m in measured()}
    one, other = found.get(a.public_id), found.get(b.public_id)
    if one is None or other is None or one.place != other.place:
        return None
    tags = {a.public_id: "A", b.public_id: "B"}
    placed = ((m, _point(m, Choice())) for m in found.values() if m.place == one.place)
    points = [replace(point, tag=tags.get(m.address, "")) for m, point in placed if point]
    return frontier_chart.frontier(one.place, METRICS["fvu"], points) if sum(bool(p.tag) for p in points) == 2 else None


def _wanted(m: Measured, choice: Choice) -> bool:
    return (not choice.families or m.family in choice.families) and (not choice.widths or m.d_sae in choice.widths)


def _point(m: Measured, choice: Choice) -> Point | None:
    """A mark; none where a figure is not there, or has no place on a logarithmic axis."""
    value = getattr(m, choice.metric.key)
    if not m.l0 or value is None or (choice.metric.log and value <= 0):
        return None
    line, tag = f"{m.family} {m.d_sae}", m.name if m.sae == choice.sae else ""
    return Point(m.l0, value, m.mark, m.name, line, m.url, m.says, tuple(_curve(m, choice)), tag)


def _curve(m: Measured, choice: Choice) -> Iterator[tuple[int, float, float]]:
    """k', L0 and the metric, which has none of cross-entropy."""
    column = {"fvu": 2, "normalised_mse": 3}.get(choice.metric.key)
    for point in m.curve:
        value = point[column] if column else None
        if point[1] and value:
            yield point[0], point[1], value


def measured() -> list[Measured]:
    """Of each SAE and data set the run that its pages show, or the newest: by place and name."""
    rows = Run.objects.filter(state__in=READABLE).exclude(summary__l0=None).values(*_FIELDS)
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=_precedence):
        newest[row["sae_id"], row["dataset__name"], row["dataset__ctx_len"]] = row
    return sorted((_measured(row) for row in newest.values()), key=lambda m: (m.place.key, m.name, m.sae))


def _precedence(row: dict[str, Any]) -> tuple[bool, bool, int]:
    return row["pk"] == row["sae__current_run_id"], not row["aside"], row["number"]


def _measured(row: dict[str, Any]) -> Measured:
    public_id, out = row["sae__sha256"][:12], row["sae__hook_name_out"]
    hook = f"{row['sae__hook_name']} → {out}" if out else row["sae__hook_name"]
    live = row["pk"] == row["sae__current_run_id"]
    figures = {name: row[f"summary__{name}"] for name in _IN_SUMMARY}
    return Measured(
        Place(row["sae__lm__name"], hook, row["dataset__name"], row["dataset__ctx_len"]), public_id, row["sae__name"],
        row["sae__architecture"], row["sae__d_sae"], row["sae__k"], row["number"],
        public_id if live else f"{public_id}@r{row['number']}", figures["tokens"], figures["l0"], figures["fvu"],
        figures["normalised_mse"], figures["ce__recovered"], figures["counts__dead"],
        tuple(tuple(point) for point in (figures["k_curve"] or {}).get("points", ())),
    )  # fmt: skip


def as_csv(rows: Iterable[tuple[Measured, bool]]) -> Iterator[Sequence[Any]]:
    """A line for each run, followed by one for each other k of it, with `at_k`."""
    yield CSV
    for m, best in rows:
        said = [m.sae, m.name, m.architecture, m.d_sae, m.k, m.number, m.tokens]
        yield [*said, None, m.l0, m.fvu, m.normalised_mse, m.ce, m.dead, int(best), m.url]
        for point in m.curve:
            yield [*said, *point, None, None, None, m.url]
