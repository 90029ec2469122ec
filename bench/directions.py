"""python -m bench.directions: the nearest and most opposing of 131,072 directions of 768 dimensions, over its matmul.

As a run does it: pieces of latents side by side on every core, each compared with all. The floor is the blocked matmul
of the same pairs in the same dtype, and that of each pair once. All take turns of some thousand latents, so that other
load slows them alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from bench.report import Clock, line

LATENTS, WIDTH = map(int, os.environ.get("BENCH_DIRECTIONS", "131072x768").split("x"))
TURNS = int(os.environ.get("BENCH_TURNS", "0"))  # how many of them, evenly spread; 0 for all
TURN, PIECE = 4096, 512
DTYPE = os.environ.get("BENCH_DTYPE", "bfloat16")


def main() -> None:
    import torch

    from sae_backend.core.neighbours import Directions

    W_dec = torch.randn(LATENTS, WIDTH, generator=torch.Generator().manual_seed(0))
    directions = Directions(W_dec, getattr(torch, DTYPE))
    directions.neighbours(0, min(LATENTS, PIECE))  # compiled
    ours, floor, once = _measured(directions)
    scale, unit = LATENTS / _measured_latents(), f"s, {LATENTS:,} x {WIDTH:,} in {DTYPE}"
    line("directions", ours.wall * scale, unit)
    line("directions_floor", floor.wall * scale, unit)
    line("directions_floor_once", once.wall * scale, unit)
    line("directions_over_floor", ours.wall / floor.wall, "time / blocked matmul of the same pairs")
    line("directions_over_floor_once", ours.wall / once.wall, "time / blocked matmul of each pair once")
    line("directions_over_floor_cpu", ours.cpu / floor.cpu, "the same in CPU time")


def _turns() -> list[int]:
    every = list(range(0, LATENTS, TURN))
    n = min(TURNS or len(every), len(every))
    return [every[(2 * i + 1) * len(every) // (2 * n)] for i in range(n)]


def _measured_latents() -> int:
    return sum(min(TURN, LATENTS - lo) for lo in _turns())


def _measured(directions: Any) -> tuple[Clock, Clock, Clock]:
    ours, floor, once = Clock(), Clock(), Clock()
    for lo in _turns():
        hi = min(lo + TURN, LATENTS)
        _in_lanes(ours, lo, hi, directions.neighbours)
        _in_lanes(floor, lo, hi, lambda a, b: _matmul(directions, a, b, 0))
        _in_lanes(once, lo, hi, lambda a, b: _matmul(directions, a, b, a))
    return ours, floor, once


def _in_lanes(clock: Clock, lo: int, hi: int, work: Callable[[int, int], Any]) -> None:
    import torch

    from sae_backend.core.lanes import lanes

    with clock():
        for _ in lanes(torch.device("cpu")).map(lambda a: work(a, min(a + PIECE, hi)), range(lo, hi, PIECE)):
            pass


def _matmul(directions: Any, lo: int, hi: int, first: int) -> None:
    """Of latents lo ≤ i < hi with those from `first` on, in the blocks that they are looked at in."""
    from sae_backend.core.neighbours import _COLUMNS, _ROWS

    for a in range(lo, hi, _ROWS):
        for b in range(first, LATENTS, _COLUMNS):
            directions.rough[a : min(a + _ROWS, hi)] @ directions.rough[b : b + _COLUMNS].T


if __name__ == "__main__":
    main()
