"""Geometry of the chart of a language model's layers: basis kurtosis after each, in a box of 100 × 100, y downwards."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from browser.axes import Tick

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
LAYER_TICKS = 8


@dataclass(frozen=True)
class LayerChart:
    """Kurtosis over the coordinates of the residual stream against depth, logarithmic, beside its rotated control."""

    plain: str
    rotated: str
    here: int | None  # per cent along the axis of the SAE's place
    left: bool  # the words there stand on its left
    xticks: list[Tick]
    yticks: list[Tick]
    tokens: int
    says: str  # the chart in one sentence


def layers(summary: Mapping[str, Any], hook_name: str) -> LayerChart | None:
    """None of a run that did not measure it."""
    told = summary.get("basis_by_layer") or {}
    found: list[Mapping[str, Any]] = told.get("layers") or []
    if len(found) < 2 or any(not of["plain"] or not of["rotated"] for of in found):
        return None
    plain, rotated = [of["plain"] for of in found], [of["rotated"] for of in found]
    low, high = _span([*plain, *rotated, 3.0])
    place = _place(hook_name, len(found) - 1)
    here = None if place is None else round(100 * place / (len(found) - 1))
    top = max(range(len(plain)), key=plain.__getitem__)
    most = f"most {plain[top]:.3g} {_name(top)}; rotated, about {rotated[top]:.2g}"
    says = f"Basis kurtosis of {len(found) - 1} layers: {most}."
    return LayerChart(
        _line(plain, low, high), _line(rotated, low, high), here, (here or 0) > 60, _layer_ticks(len(found)),
        _ticks(low, high), int(told["tokens"]), says,
    )  # fmt: skip


def _name(layer: int) -> str:
    return f"after block {layer - 1}" if layer else "before block 0"


def _place(hook_name: str, n_layers: int) -> float | None:
    """Where a hook point stands among the residual stream's: before the first block 0, after the last n_layers."""
    match = _BLOCK.fullmatch(hook_name)
    if match is None:
        return 0.0 if hook_name == "hook_embed" else None
    layer, kind = int(match[1]), match[2]
    within = {"hook_resid_pre": 0.0, "hook_resid_post": 1.0}.get(kind, 0.5)
    return layer + within if layer < n_layers else None


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Natural logarithms of the least and greatest with a margin."""
    low, high = math.log(min(values)), math.log(max(values))
    margin = max(0.1 * (high - low), 0.1)
    return low - margin, high + margin


def _line(values: Sequence[float], low: float, high: float) -> str:
    across, up = 100 / (len(values) - 1), 100 / (high - low)
    return "M" + "L".join(f"{across * i:.2f} {100 - up * (math.log(v) - low):.2f}" for i, v in enumerate(values))


def _layer_ticks(n: int) -> list[Tick]:
    """Numbers of blocks, at the place after each; "in" before the first."""
    every = max(1, math.ceil((n - 1) / LAYER_TICKS))
    blocks = [Tick(round(100 * (i + 1) / (n - 1), 2), str(i)) for i in range(n - 1) if i % every == 0]
    return [Tick(0, "in"), *blocks]


def _ticks(low: float, high: float) -> list[Tick]:
    """Round numbers 1, 2, 3, 5 × 10^n within the span, at most six."""
    rounds = [k * 10.0**n for n in range(-1, 8) for k in (1, 2, 3, 5) if low <= math.log(k * 10.0**n) <= high]
    some = rounds if len(rounds) <= 6 else [v for v in rounds if f"{v:.0e}"[0] in "13"]
    return [Tick(round(100 * (math.log(v) - low) / (high - low), 2), f"{v:g}") for v in some]
