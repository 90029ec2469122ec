"""Geometry of the charts: what a template needs to draw SVG in a box of 100 × 100, y downwards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from browser.axes import Tick
from sae_backend.packing import N_INTERVALS, Histogram, Logits, bin_edges

BARS_PER_BAND = 6
_FLOOR = 0.4  # the count at which a bar of a logarithmic axis has no height
_GAP = 0.14  # of a bar's width, left free beside it
TAIL = 2.0  # standard deviations from which a logit effect counts as promoted or suppressed in the chart

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bars:
    """Bars of one colour as one SVG path."""

    name: str
    path: str


class Band(NamedTuple):
    """One interval of activation."""

    number: int  # 1 … 10, weak to strong
    low: float
    high: float
    firings: int


@dataclass(frozen=True)
class ActivationChart:
    """Activations 0 … top on a linear axis, counts on a logarithmic one."""

    top: float
    bars: list[Bars]  # named bb1 … bb10, one for each band that has any
    ticks: list[Tick]
    bands: list[Band]
    firings: int


@dataclass(frozen=True)
class LogitChart:
    """Effects on all tokens of the vocabulary; counts are drawn as log(1 + n)."""

    bars: list[Bars]  # named ng, "" and on
    ticks: list[Tick]
    tokens: int


def activations(histogram: Histogram, top: float) -> ActivationChart:
    """Redraw the logarithmic bins on a linear axis: `top` is the latent's largest activation."""
    counts = linear_counts(histogram, top, N_INTERVALS * BARS_PER_BAND)
    ceiling = max(int(counts.max()), 1)
    heights = log_heights(counts, ceiling)
    edges = _edges(top, N_INTERVALS)
    bands = [
        Band(i + 1, float(edges[i]), float(edges[i + 1]), int(n))
        for i, n in enumerate(histogram.intervals.tolist())
    ]
    paths = [
        Bars(f"bb{b.number}", _path(heights, (b.number - 1) * BARS_PER_BAND, b.number * BARS_PER_BAND))
        for b in bands
        if b.firings
    ]
    return ActivationChart(top, paths, _decades(ceiling), bands, sum(b.firings for b in bands))


def linear_counts(histogram: Histogram, top: float, bars: int) -> Ints:
    """Firings in `bars` equal parts of (0, top], whole numbers that add up to the exact count of every band.

    Within a bin they are taken as evenly spread, so a bar is about right, while bands and bins are exact; the
    strongest firing is in the last bar.
    """
    at, below = _cumulative(histogram, top)
    edges = _edges(top, bars)
    weaker = np.floor(np.interp(edges, at, below) + 1e-6).astype(np.int64)
    return np.asarray(weaker[1:] - weaker[:-1])


def _edges(top: float, parts: int) -> Floats:
    """Of equal parts of 0 … top, to the bit as np.linspace has them, which takes longer than all of them."""
    edges = np.arange(parts + 1, dtype=np.float64) * np.float64(top / parts)
    edges[-1] = top
    return edges


def _cumulative(histogram: Histogram, top: float) -> tuple[Floats, Floats]:
    """Where the number of weaker firings is known exactly: at the edges of bins and of bands."""
    n = len(histogram.counts)
    bins = np.minimum(bin_edges(histogram.first_bin + np.arange(n + 1)), top)
    bands = _edges(top, len(histogram.intervals))
    at = np.concatenate([bins, bands])
    below = np.concatenate([[0], np.cumsum(histogram.counts), [0], np.cumsum(histogram.intervals)])
    order = np.lexsort((below, at))
    return at[order], np.maximum.accumulate(below[order]).astype(np.float64)


def log_heights(counts: Sequence[float] | Ints, ceiling: float) -> Floats:
    """Per cent of the box for each count; `ceiling` fills it."""
    c = np.maximum(np.asarray(counts, np.float64), _FLOOR)
    heights = 100 * np.log(c / _FLOOR) / math.log(ceiling / _FLOOR)
    return np.asarray(heights, np.float64)


def _decades(ceiling: int) -> list[Tick]:
    """Powers of ten up to the tallest bar, at most five of them."""
    decades = int(math.log10(ceiling))
    step = 1 + decades // 5
    powers = [10**i for i in range(0, decades + 1, step)]
    return [Tick(round(float(log_heights([p], ceiling)[0]), 2), _power(p)) for p in powers]


def _power(n: int) -> str:
    return f"{n}" if n < 1000 else f"{n // 1000}k" if n < 10**6 else f"{n // 10**6}M"


def _path(heights: Floats, start: int, stop: int) -> str:
    """Bars start ≤ i < stop of a row of len(heights), as one path."""
    bar = f"h{100 / len(heights) * (1 - _GAP):.2f}"
    drawn = zip(_feet(len(heights))[start:stop], heights[start:stop].tolist(), strict=True)
    return "".join([f"{foot}v-{height:.1f}{bar}v{height:.1f}z" for foot, height in drawn if height >= 0.05])


@lru_cache
def _feet(bars: int) -> list[str]:
    """Where each of so many bars begins."""
    return [f"M{(i + _GAP / 2) * (100 / bars):.2f} 100" for i in range(bars)]


def logits(x: Logits, std: float | None) -> LogitChart | None:
    """The distribution of logit effects, tails beyond TAIL standard deviations apart; None without any."""
    n = len(x.counts)
    if not n or not x.counts.any():
        return None
    heights = 100 * np.log1p(x.counts.astype(np.float64)) / math.log1p(int(x.counts.max()))
    middle = np.linspace(x.low, x.high, n + 1)[:-1] + (x.high - x.low) / n / 2
    tail = TAIL * (std or math.inf)
    a, b = int(np.searchsorted(middle, -tail)), int(np.searchsorted(middle, tail))
    parts = [
        Bars("ng", _path(heights, 0, a)),
        Bars("", _path(heights, a, b)),
        Bars("on", _path(heights, b, n)),
    ]
    return LogitChart([p for p in parts if p.path], _range_ticks(x.low, x.high), int(x.counts.sum()))


def _range_ticks(low: float, high: float) -> list[Tick]:
    ticks = [Tick(0, f"{low:.2f}".replace("-", "−"), "s"), Tick(100, f"{high:.2f}", "e")]
    zero = -100 * low / (high - low) if high > low else -1
    return [*ticks, Tick(round(zero, 2), "0")] if 8 < zero < 92 else ticks
