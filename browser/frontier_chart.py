"""Geometry of the frontier: a measure of reconstruction against L0, an SAE a mark, in a box of 100 × 100."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from browser.axes import Axis, Tick
from browser.templatetags.latent_tags import compact, fixed, percent, thousands


@dataclass(frozen=True)
class Metric:
    """What is drawn upwards."""

    key: str  # in addresses, and the field of figures
    name: str
    means: str
    lower: bool = True  # is better
    log: bool = True


METRICS = {
    m.key: m
    for m in (
        Metric("fvu", "FVU", "fraction of variance unexplained: mean ‖x − x̂‖² over mean ‖x − x̄‖²"),
        Metric("normalised_mse", "normalised MSE", "mean of ‖x − x̂‖²/‖x‖² over tokens"),
        Metric("ce", "CE recovered", "(CE with zeros − CE with the SAE) / (CE with zeros − CE clean)", False, False),
    )
}


@dataclass(frozen=True)
class Place:
    """What two SAEs must share for their figures to be comparable."""

    lm: str
    hook: str  # with where a transcoder writes to
    dataset: str
    ctx_len: int

    @property
    def key(self) -> str:
        return f"{self.lm} {self.hook} {self.dataset} {self.ctx_len}"


@dataclass(frozen=True)
class Point:
    """An SAE on the frontier."""

    l0: float
    value: float
    mark: str  # class of _mark.html
    name: str
    line: str  # marks with the same line are joined
    url: str
    says: str = ""  # all its figures, never one alone
    curve: tuple[tuple[int, float, float], ...] = ()  # k', L0 and value with other k than its own
    tag: str = ""  # what stands beside a mark that stands out
    best: bool = False  # Pareto-optimal
    x: float = 0
    y: float = 0


@dataclass(frozen=True)
class Curve:
    """Marks of one architecture and width, joined and named; those that another of them beats are left out."""

    mark: str
    name: str
    path: str
    end: Point


@dataclass(frozen=True)
class KCurve:
    """One SAE with other k than its own: a thin line, and a dot for each k'."""

    mark: str
    name: str
    path: str
    dots: str  # as a path of strokes without length


@dataclass(frozen=True)
class Frontier:
    """All SAEs of one place."""

    place: Place
    metric: Metric
    points: list[Point]
    curves: list[Curve]
    xticks: list[Tick]
    yticks: list[Tick]
    k_curves: list[KCurve] = field(default_factory=list)

    @property
    def key(self) -> str:
        return self.place.key

    @property
    def families(self) -> list[tuple[str, str]]:
        """Class and name of each architecture drawn, for the legend."""
        return sorted({(p.mark, p.line.rpartition(" ")[0]) for p in self.points})


def in_words(
    l0: float | None, fvu: float | None, mse: float | None, ce: float | None, dead: int | None
) -> str:
    """All figures of a mark."""
    figures = (
        ("L0", fixed(l0, 1)), ("FVU", compact(fvu)), ("normalised MSE", compact(mse)),
        ("CE recovered", percent(ce)), ("dead", thousands(dead)),
    )  # fmt: skip
    return ", ".join(f"{name} {value}" for name, value in figures)


def frontier(place: Place, metric: Metric, points: Sequence[Point], with_k: bool = False) -> Frontier:
    """The chart; with_k draws what other k would give, and makes room for it."""
    curves = [p.curve for p in points if with_k]
    xs = [p.l0 for p in points] + [l0 for curve in curves for _, l0, _ in curve]
    ys = [p.value for p in points] + [value for curve in curves for *_, value in curve]
    x, y = Axis.of(xs), Axis.of(ys, metric.log)
    best = pareto(points, metric)
    placed = [
        replace(p, x=x.place(p.l0), y=y.place(p.value), best=p in best)
        for p in sorted(points, key=lambda p: (p.line, p.l0))
    ]
    drawn = [_k_curve(p, x, y) for p in placed if with_k and p.curve]
    return Frontier(place, metric, placed, _curves(placed, metric), x.octaves(), y.ticks(), drawn)


def pareto(points: Sequence[Point], metric: Metric) -> list[Point]:
    """Those that no other one equals or beats in both, being better in one."""
    sign = 1 if metric.lower else -1
    key = lambda p: (p.l0, sign * p.value)  # noqa: E731
    beats = lambda a, b: key(a) != key(b) and key(a)[0] <= key(b)[0] and key(a)[1] <= key(b)[1]  # noqa: E731
    return [p for p in points if not any(beats(other, p) for other in points)]


def _curves(points: Sequence[Point], metric: Metric) -> list[Curve]:
    lines: dict[str, list[Point]] = {}
    for point in points:
        lines.setdefault(point.line, []).append(point)
    joined = [(name, pareto(members, metric)) for name, members in lines.items()]
    return [
        Curve(members[0].mark, name, _path((p.x, p.y) for p in members), members[-1])
        for name, members in joined
    ]


def _k_curve(point: Point, x: Axis, y: Axis) -> KCurve:
    places = [(x.place(l0), y.place(value)) for _, l0, value in point.curve]
    dots = "".join(f"M{a:.2f} {100 - b:.2f}h0" for a, b in places)
    return KCurve(point.mark, point.name, _path(places), dots)


def _path(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{a:.2f},{100 - b:.2f}" for a, b in places)
