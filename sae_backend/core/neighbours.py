"""Every latent against every other: exact nearest and most opposing decoder directions, and D_i.

Cost: one matmul [d_sae d_out] × [d_out d_sae], in bfloat16 where the hardware multiplies it faster, and one look at
each cosine while it is in cache. The nearest that fired is among a latent's nearest, but where those are all dead: only
such latents are compared once more, with the live ones alone. D_i needs no pairs: Σ_j (d̂_i·d_j)² = d̂_iᵀ G d̂_i with
G = Σ_j d_j d_jᵀ over live j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import pairs
from sae_backend.core.lanes import lanes
from sae_backend.core.sae import top_k

Found = tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32], npt.NDArray[np.uint32], npt.NDArray[np.float32]]
N_NEIGHBOURS = 10
_ROWS, _COLUMNS = 256, 2048  # of one block of cosines on a CPU: 1 MB in bfloat16
_ON_DEVICE = 2**28  # cosines held at once on an accelerator
_CANDIDATES = 256  # kept of each latent and side before the weaker are dropped
_FEWEST = 64  # rows of a matmul: with fewer, libraries sum in another order and a latent's bits depend on its shard
_PRODUCTS = 8192  # directions whose outer products are summed in one matmul
_SHIFT = {torch.bfloat16: 16, torch.float32: 0}  # bits short of a float32's
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6}  # of a cosine, relative to it


@dataclass(frozen=True)
class Nearest:
    """Of n latents, up to m others each way; cosines are infinite where there are fewer."""

    nearest: npt.NDArray[np.uint32]  # [n m] largest cosine first, of equal ones the lower latent
    nearest_cos: npt.NDArray[np.float32]
    opposing: npt.NDArray[np.uint32]  # [n m] smallest cosine first
    opposing_cos: npt.NDArray[np.float32]


class Directions:
    """Unit decoder rows [d_sae d_out], ready to be compared; dtype is that of the first, rough comparison."""

    def __init__(self, W_dec: Tensor, dtype: torch.dtype = torch.float32) -> None:
        norm = W_dec.norm(dim=1, keepdim=True)
        self.unit = W_dec / torch.where(norm > 0, norm, torch.ones_like(norm))
        self.directed = norm[:, 0] > 0
        self.m = min(N_NEIGHBOURS, len(W_dec) - 1)
        self.every = np.arange(len(W_dec), dtype=np.int32)
        on_host = W_dec.device.type == "cpu"
        self.rough = self.unit.to(dtype) if on_host else self.unit
        lost = (self.unit - self.rough.float()).norm(dim=1) if on_host else torch.zeros(1)
        #: [d_sae], by which a rough cosine of this latent with any other may be off, its own rounding left out
        self.slack = (lost + lost.max() + 2e-6).cpu().numpy()

    def neighbours(self, lo: int, hi: int) -> Nearest:
        """Of latents lo ≤ i < hi."""
        if self.unit.device.type == "cpu":
            parts = [self._on_host(self.every[a : min(a + _ROWS, hi)], None, self.m) for a in range(lo, hi, _ROWS)]
        else:
            parts = [self.on_device(lo, hi)]
        return Nearest(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def nearest_live(
        self, lo: int, hi: int, found: Nearest, live: Tensor
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Of latents lo ≤ i < hi, whose neighbours were found: the nearest of live [d_sae] bool others, and its cosine.

        -1 and NaN where there is none, or no direction.
        """
        alive = live.cpu().numpy()[found.nearest] & np.isfinite(found.nearest_cos)
        best, any_alive, row = alive.argmax(1) if self.m else 0, alive.any(1), np.arange(hi - lo)
        ids, cos = np.full(hi - lo, -1), np.full(hi - lo, np.nan)
        if self.m:
            ids[any_alive] = found.nearest[row, best][any_alive]
            cos[any_alive] = found.nearest_cos[row, best][any_alive]
        left = np.flatnonzero(~any_alive & self.directed[lo:hi].cpu().numpy())
        for part in np.split(left, range(_ROWS, len(left), _ROWS)):
            ids[part], cos[part] = self._among_live(part + lo, live)
        return ids, cos

    def _among_live(
        self, rows: npt.NDArray[np.int64], live: Tensor
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The nearest live one of each row, whatever else is nearer."""
        others = (live & self.directed).nonzero()[:, 0]
        if not len(others) or not len(rows):
            return np.full(len(rows), -1), np.full(len(rows), np.nan)
        if self.unit.device.type == "cpu":
            ids, cos, _, _ = self._on_host(rows.astype(np.int32), others.numpy().astype(np.int32), 1)
        else:
            ids, cos = self._live_on_device(torch.from_numpy(rows).to(self.unit.device), others)
        found = np.isfinite(cos[:, 0])
        return np.where(found, ids[:, 0].astype(np.int64), -1), np.where(found, cos[:, 0].astype(np.float64), np.nan)

    def _on_host(
        self, rows: npt.NDArray[np.int32], others: npt.NDArray[np.int32] | None, m: int
    ) -> Found:
        """The m nearest and most opposing of a few rows among others, or among all of them."""
        n, dtype, columns = len(rows), self.rough.dtype, self.every if others is None else others
        found, values = np.empty((2, n, _CANDIDATES), np.int32), np.empty((2, n, _CANDIDATES), np.float32)
        counts, best = np.zeros((2, n), np.int32), np.zeros((2, n, m + 1), np.int32)
        least = np.full((2, n), -np.inf, np.float32)
        directed, slack, eps, shift = self.directed.numpy(), self.slack[rows], _ROUNDING[dtype], _SHIFT[dtype]
        own = self._rough(rows, slice(int(rows[0]), int(rows[-1]) + 1) if others is None else None)
        for a in range(0, len(columns), _COLUMNS):
            some = columns[a : a + _COLUMNS]
            block = self._rough(some, slice(a, a + _COLUMNS) if others is None else None)
            cos = (own @ block.T).view(_BITS[dtype]).numpy()
            bits = cos, cos.view(f"u{cos.itemsize}")
            pairs.block(*bits, some, rows, directed, m, slack, eps, shift, found, values, counts, best, least)
        ids, cosines = np.empty((2, n, m), np.uint32), np.empty((2, n, m), np.float32)
        pairs.exact(self.unit.numpy(), rows, columns, directed, slack, eps, found, values, counts, ids, cosines)
        return ids[0], cosines[0], ids[1], cosines[1]

    def _rough(self, latents: npt.NDArray[np.int32], adjacent: slice | None) -> Tensor:
        """Their rough rows: a view where they are adjacent, for copies cost time."""
        return self.rough[torch.from_numpy(latents).long() if adjacent is None else adjacent]

    def _live_on_device(
        self, rows: Tensor, others: Tensor
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        best, own = _Running(1, largest=True), self.unit[rows]
        width = max(1, _ON_DEVICE // len(rows))
        for a in range(0, len(others), width):
            cos = own @ self.unit[others[a : a + width]].T
            best.add(cos.masked_fill(rows[:, None] == others[a : a + width], -torch.inf), a)
        place, cosines = best.result()
        return others.cpu().numpy()[place].astype(np.uint32), cosines

    def on_device(self, lo: int, hi: int) -> Found:
        """With torch alone, in float32: what an accelerator does, and what the host's loops are compared with."""
        best, worst = _Running(self.m, largest=True), _Running(self.m, largest=False)
        rows, directed = self.unit[lo:hi], self.directed[lo:hi]
        width = max(1, _ON_DEVICE // (hi - lo))
        for a in range(0, len(self.unit), width):
            block = self.unit[a : a + width]
            cos = rows @ block.T  # [hi - lo, columns]
            columns = torch.arange(a, a + len(block), device=rows.device)
            own = torch.arange(lo, hi, device=rows.device)[:, None] == columns
            undefined = own | ~directed[:, None] | ~self.directed[a : a + len(block)]
            best.add(cos.masked_fill(undefined, -torch.inf), a)
            worst.add(cos.masked_fill(undefined, torch.inf), a)
        near, near_cos = best.result()
        return near, np.where(near_cos == -np.inf, np.inf, near_cos), *worst.result()

    def products(self, live: Tensor) -> Tensor:
        """G [d_out d_out] float64 over live latents [d_sae] bool, the same bits on any number of cores."""
        alive = self.unit[live]
        total = torch.zeros(alive.shape[1], alive.shape[1], dtype=torch.float64, device=alive.device)
        for part in lanes(alive.device).map(lambda rows: rows.double().T @ rows.double(), alive.split(_PRODUCTS)):
            total += part
        return total

    def dimensionality(self, lo: int, hi: int, live: Tensor, products: Tensor) -> npt.NDArray[np.float64]:
        """D_i of latents lo ≤ i < hi, over live latents and each itself; NaN without a direction."""
        rows = self.unit[lo:hi].double()
        few = rows.new_zeros(max(0, _FEWEST - len(rows)), rows.shape[1])
        squares = ((torch.cat([rows, few]) @ products)[: hi - lo] * rows).sum(1) + (~live[lo:hi]).double()
        return torch.where(self.directed[lo:hi], 1.0 / squares, torch.nan).cpu().numpy()


class _Running:
    """The m best columns of each row over blocks of columns, ties to the lower column."""

    def __init__(self, m: int, largest: bool) -> None:
        self.m, self.largest = m, largest
        self.values: Tensor | None = None
        self.columns: Tensor

    def add(self, block: Tensor, first: int) -> None:
        ranked = block if self.largest else -block
        local = top_k(ranked, min(self.m, block.shape[1])).sort(dim=1).values  # ascending, for the stable sort below
        values, columns = block.gather(1, local), local + first
        if self.values is not None:
            values = torch.cat([self.values, values], 1)
            columns = torch.cat([self.columns, columns], 1)
        order = values.argsort(dim=1, descending=self.largest, stable=True)[:, : self.m]
        self.values, self.columns = values.gather(1, order), columns.gather(1, order)

    def result(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        assert self.values is not None
        return self.columns.cpu().numpy().astype(np.uint32), self.values.cpu().numpy()
