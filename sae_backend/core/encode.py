"""The encoder over every latent at once, in blocks of columns, keeping only what fires.

Cost: one matmul [n d_in] × [d_in d_sae] and, for TopK, one look at each pre-activation while it is in cache.
A dense [n d_sae] is never held beyond one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import kernels
from sae_backend.core.sae import SparseActs, SparseAutoencoder

ROWS, _COLUMNS = 2048, 2048  # of one block of pre-activations: 8 MB in bfloat16
_FEWEST = 64  # rows of a matmul: with fewer, libraries sum in another order and a token's bits depend on its batch
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True)
class Firings:
    """What fires in n tokens, in token order: compressed rows of the sparse activations."""

    indptr: npt.NDArray[np.int64]  # [n + 1]
    latent: npt.NDArray[np.int32]  # [nnz] ascending within a token
    act: npt.NDArray[np.float32]  # [nnz] positive, on the checkpoint's own scale
    scale: npt.NDArray[np.float32] | None = None  # [n] the token's factor of the canonical scale; None is 1

    def rows(self) -> npt.NDArray[np.int64]:
        """The token of each firing."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))

    def of(self, tokens: npt.NDArray[np.int64], sae: SparseAutoencoder) -> SparseActs:
        """The firings of some tokens, renumbered from 0, as `sae.decode` reads them."""
        counts = np.diff(self.indptr)[tokens]
        starts = self.indptr[tokens] - (np.cumsum(counts) - counts)
        place = np.arange(counts.sum()) + np.repeat(starts, counts)
        numbers = np.repeat(np.arange(len(tokens)), counts)
        row, latent, act = (torch.from_numpy(c).to(sae.device) for c in (numbers, self.latent[place], self.act[place]))
        return SparseActs(row, latent, act, (len(tokens), sae.cfg.d_sae))


class BlockEncoder:
    """Equals SparseAutoencoder.encode up to the rounding of `dtype`, at the speed of its matmul."""

    def __init__(self, sae: SparseAutoencoder, dtype: torch.dtype = torch.float32) -> None:
        self.sae = sae
        self.dtype = dtype
        plain = sae.cfg.architecture == "topk" and not sae.cfg.rank_by_decoder_norm
        self.fast = plain and sae.W_enc.device.type == "cpu"
        if self.fast:
            W, b = sae.W_enc.to(dtype), sae.b_enc.to(dtype)
            self.blocks = [
                (c, W[:, c : c + _COLUMNS].contiguous(), b[c : c + _COLUMNS].contiguous())
                for c in range(0, sae.cfg.d_sae, _COLUMNS)
            ]

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Firings:
        """Firings of hidden [n d_in]."""
        normalised = self.sae.normalise(hidden)
        x, scale = normalised.x, normalised.undo.scale
        parts = [self._rows(x[r : r + ROWS]) for r in range(0, max(1, len(x)), ROWS)]
        counts = np.concatenate([np.diff(p.indptr) for p in parts])
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        latent, act = np.concatenate([p.latent for p in parts]), np.concatenate([p.act for p in parts])
        return Firings(indptr, latent, act, None if scale is None else scale[:, 0].cpu().numpy())

    def _rows(self, x: Tensor) -> Firings:
        """Firings of x [n d_in], already normalised."""
        n = len(x)
        if n < _FEWEST:
            x = torch.cat([x, x.new_zeros(_FEWEST - n, x.shape[1])])
        found = self._topk(x) if self.fast else self._generic(x)
        end = found.indptr[n]
        return Firings(found.indptr[: n + 1], found.latent[:end], found.act[:end])

    def _generic(self, x: Tensor) -> Firings:
        acts = self.sae.select(torch.addmm(self.sae.b_enc, x, self.sae.W_enc))
        counts = acts.counts().cpu().numpy()
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Firings(indptr, acts.latent.cpu().numpy().astype(np.int32), acts.value.cpu().numpy())

    def _topk(self, x: Tensor) -> Firings:
        top = RunningTopK(len(x), int(self.sae.cfg.k or 0), self.dtype)
        x = x.to(self.dtype)
        for column, W, b in self.blocks:
            top.add(torch.addmm(b, x, W), column)
        return top.chosen()


class RunningTopK:
    """The k largest positive pre-activations of n tokens, exactly, over blocks of columns given in ascending order."""

    def __init__(self, n: int, k: int, dtype: torch.dtype) -> None:
        self.k, self.dtype = k, dtype
        self._values, self._indices = np.empty((n, 4 * k + 1), np.int32), np.empty((n, 4 * k + 1), np.int32)
        self._counts, self._bounds = np.zeros(n, np.int32), np.zeros(n, np.int32)

    def add(self, pre_acts: Tensor, column: int) -> None:
        """pre_acts [n columns], the first being latent `column`."""
        bits = pre_acts.view(_BITS[self.dtype]).numpy()
        kernels.topk_block(bits, column, self.k, self._values, self._indices, self._counts, self._bounds)

    def chosen(self) -> Firings:
        chosen = np.empty((len(self._counts), self.k), np.int32)
        kernels.topk_finish(self._values, self._indices, self._counts, self.k, chosen)
        kept = chosen >= 0
        indptr = np.concatenate([[0], np.cumsum(kept.sum(1))]).astype(np.int64)
        return Firings(indptr, chosen[kept], self._floats(self._values[:, : self.k][kept]))

    def _floats(self, bits: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        if self.dtype == torch.float16:
            return bits.astype(np.int16).view(np.float16).astype(np.float32)
        return (bits << (16 if self.dtype == torch.bfloat16 else 0)).view(np.float32)
