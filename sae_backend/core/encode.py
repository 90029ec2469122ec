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
from sae_backend.core.sae import SparseAutoencoder

ROWS, _COLUMNS = 2048, 2048  # of one block of pre-activations: 8 MB in bfloat16
_FEWEST = 64  # rows of a matmul: with fewer, libraries sum in another order and a token's bits depend on its batch
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


@dataclass(frozen=True)
class Firings:
    """What fires in n tokens, in token order: compressed rows of the sparse activations."""

    indptr: npt.NDArray[np.int64]  # [n + 1]
    latent: npt.NDArray[np.int32]  # [nnz] ascending within a token
    act: npt.NDArray[np.float32]  # [nnz] positive, on the checkpoint's own scale

    def rows(self) -> npt.NDArray[np.int64]:
        """The token of each firing."""
        return np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))


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
        parts = [self._rows(hidden[r : r + ROWS]) for r in range(0, max(1, len(hidden)), ROWS)]
        counts = np.concatenate([np.diff(p.indptr) for p in parts])
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Firings(indptr, np.concatenate([p.latent for p in parts]), np.concatenate([p.act for p in parts]))

    def _rows(self, hidden: Tensor) -> Firings:
        n = len(hidden)
        if n < _FEWEST:
            hidden = torch.cat([hidden, hidden.new_zeros(_FEWEST - n, hidden.shape[1])])
        found = self._topk(hidden) if self.fast else self._generic(hidden)
        end = found.indptr[n]
        return Firings(found.indptr[: n + 1], found.latent[:end], found.act[:end])

    def _generic(self, hidden: Tensor) -> Firings:
        acts = self.sae.encode(hidden.float())
        counts = torch.bincount(acts.token, minlength=len(hidden)).cpu().numpy()
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return Firings(indptr, acts.latent.cpu().numpy().astype(np.int32), acts.value.cpu().numpy())

    def _topk(self, hidden: Tensor) -> Firings:
        top = RunningTopK(len(hidden), int(self.sae.cfg.k or 0), self.dtype)
        x = self.sae.normalise(hidden.float()).x.to(self.dtype)
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
