"""Axes of the charts: which round numbers stand where, in per cent of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Tick:
    """A label at `at` per cent of an axis."""

    at: float
    text: str
    side: str = ""  # "s" or "e": aligned with the start or the end of the axis

    @property
    def y(self) -> float:
        """Of a grid line, downwards."""
        return round(100 - self.at, 2)


@dataclass(frozen=True)
class Axis:
    """From low to high of a value's natural logarithm, or of the value itself."""

    low: float
    high: float
    log: bool = True

    @classmethod
    def of(cls, values: Sequence[float], log: bool = True) -> Axis:
        """Around some values, positive where it is logarithmic, with room for a mark beyond each end."""
        low, high = (math.log(end(values)) if log else end(values) for end in (min, max))
        margin = max(0.08 * (high - low), 0.12) if log else 0.08 * (high - low) or 0.02 * abs(high) or 1.0
        return cls(low - margin, high + margin, log)

    def place(self, value: float) -> float:
        """Per cent of the axis."""
        return round(100 * ((math.log(value) if self.log else value) - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[Tick]:
        return ticks_between(self.low, self.high) if self.log else _even(self)

    def octaves(self) -> list[Tick]:
        """Powers of two, as k is chosen, or round numbers where the axis holds fewer than two of them."""
        octaves = range(math.floor(self.low / math.log(2)), math.ceil(self.high / math.log(2)) + 1)
        ticks = at([2.0**n for n in octaves], self.low, self.high)
        every = 1 + (len(ticks) - 1) // 9
        return ticks[::every] if len(ticks) > 1 else self.ticks()


def _even(axis: Axis) -> list[Tick]:
    """Some five round numbers on a linear axis."""
    rough = (axis.high - axis.low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= rough)
    places = range(math.ceil(axis.low / step), math.floor(axis.high / step) + 1)
    return [Tick(axis.place(step * i), f"{step * i:.10g}") for i in places]


def ticks_between(low: float, high: float) -> list[Tick]:
    """Powers of ten within a natural-log span, and round numbers between where those are too few."""
    decades = range(math.floor(low / math.log(10)), math.ceil(high / math.log(10)) + 1)
    for steps in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)):
        ticks = at([k * 10.0**n for n in decades for k in steps], low, high)
        if len(ticks) > 2:
            break
    return ticks


def at(values: Sequence[float], low: float, high: float) -> list[Tick]:
    """Ticks of those values that lie within a natural-log span."""
    inside = [v for v in values if low <= math.log(v) <= high]
    return [Tick(round(100 * (math.log(v) - low) / (high - low), 2), _text(v)) for v in inside]


def _text(value: float) -> str:
    """0.002, but 5e-4: labels stay narrow."""
    return f"{value:g}" if value >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
