"""Geometry of the charts of SAEs: what a template needs to draw in a box of 100 × 100, y downwards."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from browser.axes import Tick, ticks_between
from browser.templatetags.latent_tags import density, thousands

RARE = 1e-5  # latents of lower density are rare


@dataclass(frozen=True)
class Line:
    """A dashed vertical line with its meaning beside it."""

    at: float
    text: str
    left: bool = False  # the words stand on its left


@dataclass(frozen=True)
class Distribution:
    """How many latents have which value of a statistic."""

    path: str
    xticks: list[Tick]
    yticks: list[Tick]
    lines: list[Line]
    latents: int
    says: str  # the chart in one sentence


def densities(summary: Mapping[str, Any], expected: float | None) -> Distribution | None:
    """The density histogram of a run; `expected` is the density if all latents fired alike, L0 / d_sae."""
    histogram = summary.get("density_histogram") or {}
    counts = histogram.get("counts") or []
    if not any(counts):
        return None
    low, step = histogram["low"], histogram["step"]
    ceiling, yticks = _round_axis(max(counts))
    xticks = _decades(low, low + step * len(counts))
    mode = low + step * (counts.index(max(counts)) + 0.5)
    says = f"Histogram of log density over {sum(counts)} latents that fired; most are near {density(10**mode)}."
    lines = _density_lines(low, step * len(counts), expected)
    return Distribution(_bars(counts, ceiling), xticks, yticks, lines, sum(counts), says)


def _bars(counts: Sequence[float], ceiling: float) -> str:
    width = 100 / len(counts)
    heights = ((i * width, 100 * n / ceiling) for i, n in enumerate(counts) if n)
    return "".join(f"M{x + 0.05 * width:.2f} 100v-{h:.2f}h{0.9 * width:.2f}v{h:.2f}z" for x, h in heights)


def _density_lines(low: float, width: float, expected: float | None) -> list[Line]:
    lines = [Line(100 * (math.log10(RARE) - low) / width, "rare, under 1e-5", left=True)]
    if expected:
        at = 100 * (math.log10(expected) - low) / width
        lines.append(Line(at, f"L0 / d_sae = {density(expected)}", left=at > 65))
    return [line for line in lines if 0 < line.at < 100]


def _decades(low: float, high: float) -> list[Tick]:
    """Ticks at the whole powers of ten of a log10 axis; at 1, 2 and 5 of each where it is short."""
    if high - low <= 2:
        return ticks_between(low * math.log(10), high * math.log(10))
    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    every = 1 + (len(powers) - 1) // 9
    return [_tick(100 * (p - low) / (high - low), f"1e{p}") for p in powers if p % every == 0]


def _tick(at: float, text: str) -> Tick:
    return Tick(round(at, 2), text, "s" if at < 1 else "e" if at > 99 else "")


def _round_axis(highest: float) -> tuple[float, list[Tick]]:
    """A round end for an axis of counts from 0, and four or five ticks."""
    rough = max(1.0, highest / 4)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * k for k in (1, 2, 5, 10) if size * k >= rough)
    n = math.ceil(highest / step)
    return step * n, [Tick(round(100 * i / n, 2), thousands(step * i)) for i in range(n + 1)]


@dataclass(frozen=True)
class Cells:
    """Squares of one opacity as one path."""

    opacity: float
    path: str


@dataclass(frozen=True)
class ScatterChart:
    """Density against kurtosis, binned: it stands where the points will be drawn."""

    cells: list[Cells]
    xticks: list[Tick]
    yticks: list[Tick]
    xrange: tuple[float, float]
    yrange: tuple[float, float]


def scatter(summary: Mapping[str, Any]) -> ScatterChart | None:
    """The run's bins of log10 density (rows) by log10 kurtosis (columns), cut to where there are any."""
    bins = summary.get("scatter") or {}
    counts: list[list[int]] = bins.get("counts") or []
    filled = [(i, j, n) for i, row in enumerate(counts) for j, n in enumerate(row) if n]
    if not filled:
        return None
    x0, x1 = _extent([i for i, _, _ in filled], bins["x_low"], bins["x_step"])
    y0, y1 = _extent([j for _, j, _ in filled], bins["y_low"], bins["y_step"])
    w, h = 100 * bins["x_step"] / (x1 - x0), 100 * bins["y_step"] / (y1 - y0)
    most = max(n for _, _, n in filled)
    levels: dict[int, list[str]] = {}
    for i, j, n in filled:
        x = 100 * (bins["x_low"] + i * bins["x_step"] - x0) / (x1 - x0)
        y = 100 - 100 * (bins["y_low"] + j * bins["y_step"] - y0) / (y1 - y0) - h
        level = math.ceil(5 * (0.15 + math.log1p(n)) / (0.15 + math.log1p(most)))
        levels.setdefault(level, []).append(f"M{x:.1f} {y:.1f}h{w:.2f}v{h:.2f}h-{w:.2f}z")
    cells = [Cells(round(0.18 * level, 2), "".join(paths)) for level, paths in sorted(levels.items())]
    return ScatterChart(cells, _decades(x0, x1), _decades(y0, y1), (x0, x1), (y0, y1))


def _extent(places: Sequence[int], low: float, step: float) -> tuple[float, float]:
    """The filled part of an axis and a margin of a tenth of a decade or a bin, whichever is more."""
    margin = max(0.1, step)
    return low + min(places) * step - margin, low + (max(places) + 1) * step + margin


@dataclass(frozen=True)
class L0Chart:
    """On how many tokens so many latents are active, both axes linear."""

    path: str
    xticks: list[Tick]
    yticks: list[Tick]
    mean: Line
    low: int  # percentiles of tokens: 5, 50, 95
    median: int
    high: int
    beyond: float  # share of tokens right of the chart's end
    says: str  # the chart in one sentence


L0_CENTILES = (5, 50, 95)
L0_BARS = 48
L0_CUT = 0.999  # the axis ends where so many of the tokens are


def l0_centiles(histogram: Sequence[list[int]], centiles: Sequence[float] = L0_CENTILES) -> list[int]:
    """The least number of latents that so many per cent of the tokens do not exceed; histogram [[L0, tokens], …]."""
    whole = sum(n for _, n in histogram)
    values = [value for value, _ in sorted(histogram)]
    below = list(accumulate(n for _, n in sorted(histogram)))
    return [values[bisect_left(below, whole * centile / 100)] for centile in centiles]


def l0(summary: Mapping[str, Any]) -> L0Chart | None:
    """The distribution of L0 over the tokens; None where it is not known or every token has the same."""
    histogram = summary.get("l0_histogram") or []
    if len(histogram) < 2:
        return None
    first, last = min(v for v, _ in histogram), l0_centiles(histogram, [100 * L0_CUT])[0]
    step = max(1, math.ceil((last - first + 1) / L0_BARS))
    counts = [0] * math.ceil((last - first + 1) / step)
    for value, n in histogram:
        if value <= last:
            counts[(value - first) // step] += n
    whole, end = sum(n for _, n in histogram), first + step * len(counts)
    return _l0_chart(summary, [n / whole for n in counts], first, end, 1 - sum(counts) / whole)


def _l0_chart(summary: Mapping[str, Any], shares: Sequence[float], first: int, end: int, beyond: float) -> L0Chart:
    low, median, high = l0_centiles(summary["l0_histogram"])
    ceiling, yticks = _round_axis(100 * max(shares))
    place = lambda v: 100 * (v + 0.5 - first) / (end - first)  # noqa: E731
    mean = Line(round(place(summary["l0"]), 2), f"mean {summary['l0']:.1f}", left=place(summary["l0"]) > 60)
    says = f"L0 over the tokens: mean {summary['l0']:.1f}, median {median}, nine tenths between {low} and {high}."
    xticks = [Tick(round(place(v), 2), thousands(v)) for v in _round_steps(first, end - 1)]
    return L0Chart(_bars([100 * s for s in shares], ceiling), xticks, yticks, mean, low, median, high, beyond, says)


def _round_steps(first: int, last: int) -> list[int]:
    """Four to eight round whole numbers between two."""
    size = max(1.0, (last - first) / 6)
    power = 10.0 ** math.floor(math.log10(size))
    step = int(next(power * k for k in (1, 2, 5, 10) if power * k >= size))
    return list(range(-(-first // step) * step, last + 1, step))


def distribution(
    histogram: Mapping[str, Any] | None, name: str, marks: Sequence[tuple[float, str]]
) -> Distribution | None:
    """The histogram {low, step, counts} of a run, with lines at marked values; None where the run has none."""
    counts = (histogram or {}).get("counts") or []
    if not histogram or not any(counts):
        return None
    low, width = histogram["low"], histogram["step"] * len(counts)
    ceiling, yticks = _round_axis(max(counts))
    place = lambda v: round(100 * (v - low) / width, 2)  # noqa: E731
    lines = [Line(place(v), text, left=place(v) > 55) for v, text in marks if 0 <= place(v) <= 100]
    xticks = [_tick(place(v), f"{v:.3g}") for v in _between(low, low + width)]
    said = "".join(f"; {text}" for _, text in marks)
    says = f"Histogram of {name} over {sum(counts)} latents, from {low:.3g} to {low + width:.3g}{said}."
    return Distribution(_bars(counts, ceiling), xticks, yticks, lines, sum(counts), says)


def _between(low: float, high: float) -> list[float]:
    """Three to seven round values."""
    size = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(size))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= size)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class CosineChart:
    """How many latents have which best cosine with the other SAE's: A as bars, B as a line."""

    bars: str
    line: str
    xticks: list[Tick]
    yticks: list[Tick]
    at: float  # of the threshold
    says: str


def cosines(a: Sequence[int], b: Sequence[int], near: float) -> CosineChart | None:
    """Counts from 0 to 1, each as a share of its SAE's latents, for the two differ in width."""
    if not sum(a) or not sum(b):
        return None
    one, other = ([n / sum(counts) for n in counts] for counts in (a, b))
    ceiling = max(*one, *other)
    steps = "".join(f"H{100 * i / len(other):.2f}V{100 - 100 * n / ceiling:.2f}" for i, n in enumerate(other))
    ticks = [_tick(20 * i, f"{i / 5:g}") for i in range(6)]
    under = [sum(n for i, n in enumerate(x) if (i + 1) / len(x) <= near + 1e-9) for x in (one, other)]
    says = f"Largest cosine with a latent of the other SAE: {100 * under[0]:.0f} % of A's latents are under {near:g}, "
    yticks = [Tick(100 / 2 ** (1 - i), f"{100 * ceiling / 2 ** (1 - i):.2g} %") for i in range(2)]
    says += f"{100 * under[1]:.0f} % of B's."
    return CosineChart(_bars(one, ceiling), f"M0 100{steps}H100V100", ticks, yticks, 100 * near, says)
