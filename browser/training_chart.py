"""Geometry of what changes over the steps of training: quantiles as bands around a line, in a box of 100 × 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from browser.axes import Axis, Tick
from browser.templatetags.latent_tags import thousands

LOG_BEYOND = 20  # steps spread over more than so many times the first are drawn on a logarithmic axis


@dataclass(frozen=True)
class Fan:
    """A line, and bands of quantiles around it, from the outermost in."""

    line: str
    dots: str  # as a path of strokes without length
    bands: list[str]
    xticks: list[Tick]
    yticks: list[Tick]
    log_steps: bool


def fan(points: Sequence[tuple[int, Sequence[float | None]]], log: bool) -> Fan | None:
    """Of (step, ascending quantiles, an odd number of them); None of fewer than two steps."""
    known = [(step, [v for v in values if v is not None]) for step, values in points]
    if len(known) < 2:
        return None
    steps = [step for step, _ in known]
    x = Axis.of(steps, log=steps[0] > 0 and steps[-1] > LOG_BEYOND * steps[0])
    y = Axis.of([v for _, values in known for v in values], log)
    placed = [(x.place(step), [round(100 - y.place(v), 2) for v in values]) for step, values in known]
    middle = len(placed[0][1]) // 2
    bands = [_band([(at, v[i], v[-1 - i]) for at, v in placed]) for i in range(middle)]
    line = " ".join(f"{at},{v[middle]}" for at, v in placed)
    dots = "".join(f"M{at} {v[middle]}h0" for at, v in placed)
    ticks = _apart([Tick(x.place(step), thousands(step)) for step in steps])
    return Fan(line, dots, bands, ticks, y.ticks(), x.log)


def _band(edges: Sequence[tuple[float, float, float]]) -> str:
    there = [f"{at},{low}" for at, low, _ in edges]
    return " ".join(there + [f"{at},{high}" for at, _, high in reversed(edges)])


def _apart(ticks: Sequence[Tick]) -> list[Tick]:
    """Without those whose label would lie on the one before; the last stays."""
    kept: list[Tick] = []
    for tick in reversed(ticks):
        if not kept or kept[-1].at - tick.at > 14:
            kept.append(tick)
    return kept[::-1]
