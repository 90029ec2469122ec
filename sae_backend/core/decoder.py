"""What the weights alone say: norms, neighbours, opposing directions, dimensionality, effect on the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import page_kernels
from sae_backend.core.language_model import Unembedding
from sae_backend.core.results import DecoderStats, LogitsByLatent, NeighboursByLatent
from sae_backend.core.sae import SparseAutoencoder, top_k

N_NEIGHBOURS = 10
N_LOGITS = 10
LOGIT_BINS = 50
_COLUMNS = 16384  # latents compared at once
_ROWS, _EFFECTS = 256, 1 << 24  # latents, and effects on logits, that are held at once


@dataclass(frozen=True)
class DecoderFacts:
    """Of latents lo ≤ i < hi, in order."""

    stats: DecoderStats
    neighbours: NeighboursByLatent
    logits: LogitsByLatent


class Decoder:
    """Unit decoder rows of one SAE, ready to be compared; about d_sae × d_out × 4 bytes."""

    def __init__(self, sae: SparseAutoencoder, unembedding: Unembedding | None) -> None:
        self.sae = sae
        norm = sae.W_dec.norm(dim=1, keepdim=True)
        self.unit = sae.W_dec / torch.where(norm > 0, norm, torch.ones_like(norm))
        self.directed = norm[:, 0] > 0
        self.W_U = None if unembedding is None else unembedding.weight.to(sae.device)
        if self.W_U is not None and self.W_U.shape[0] != sae.cfg.d_out:
            self.W_U = None  # the latent does not write to the residual stream: no direct effect

    @torch.no_grad()
    def facts(self, lo: int, hi: int, live: Tensor) -> DecoderFacts:
        """Everything about latents lo ≤ i < hi; live [d_sae] bool says which latents D_i counts."""
        near, near_cos, far, far_cos, dimensionality = self._compare(lo, hi, live)
        logits, moments = self._logits(lo, hi)
        stats = DecoderStats(
            decoder_norm=_floats(self.sae.decoder_norm[lo:hi]),
            b_enc=_floats(self.sae.b_enc[lo:hi]),
            encoder_decoder_cos=self._encoder_cosine(lo, hi),
            nearest_cos=_first(near_cos),
            opposing_cos=_first(far_cos),
            dimensionality=dimensionality,
            logit_std=moments[:, 0],
            logit_skewness=moments[:, 1],
            logit_kurtosis=moments[:, 2],
        )
        return DecoderFacts(stats, NeighboursByLatent(near, near_cos, far, far_cos), logits)

    def _compare(
        self, lo: int, hi: int, live: Tensor
    ) -> tuple[
        npt.NDArray[np.uint32],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float64],
    ]:
        """Neighbours and their cosines, infinite for the latent itself and where a direction is missing; D_i."""
        rows, directed = self.unit[lo:hi], self.directed[lo:hi]
        m = min(N_NEIGHBOURS, self.sae.cfg.d_sae - 1)
        best, worst = _Running(m, largest=True), _Running(m, largest=False)
        squares = torch.ones(hi - lo, dtype=torch.float64, device=rows.device)  # its own
        for a, block in self._blocks():
            cos = rows @ block.T  # [hi - lo, columns]
            columns = torch.arange(a, a + len(block), device=rows.device)
            own = torch.arange(lo, hi, device=rows.device)[:, None] == columns
            squares += (cos.masked_fill(own, 0.0).double().square() * live[a : a + len(block)]).sum(1)
            undefined = own | ~directed[:, None] | ~self.directed[a : a + len(block)]
            best.add(cos.masked_fill(undefined, -torch.inf), a)
            worst.add(cos.masked_fill(undefined, torch.inf), a)
        dimensionality = torch.where(directed, 1.0 / squares, torch.nan).cpu().numpy()
        return *best.result(), *worst.result(), dimensionality

    def _blocks(self) -> Iterator[tuple[int, Tensor]]:
        for a in range(0, self.sae.cfg.d_sae, _COLUMNS):
            yield a, self.unit[a : a + _COLUMNS]

    def _encoder_cosine(self, lo: int, hi: int) -> npt.NDArray[np.float64]:
        """NaN where the encoder and decoder live in different spaces (transcoders) or a norm is zero."""
        if self.sae.cfg.hook_name_out is not None or self.sae.cfg.d_in != self.sae.cfg.d_out:
            return np.full(hi - lo, np.nan)
        encoder, unit = self.sae.W_enc[:, lo:hi].T.double(), self.unit[lo:hi].double()
        norm = encoder.norm(dim=1) * unit.norm(dim=1)
        return _floats((encoder * unit).sum(1) / torch.where(norm > 0, norm, torch.nan))

    def _logits(self, lo: int, hi: int) -> tuple[LogitsByLatent, npt.NDArray[np.float64]]:
        """Effects on the logits, and their std, skewness and kurtosis [n 3] over the vocabulary."""
        d_vocab = 0 if self.W_U is None else self.W_U.shape[1]
        out, powers = _no_logits(hi - lo, d_vocab), np.full((hi - lo, 3), np.nan)
        if self.W_U is None:
            return out, powers
        for latents in self.directed[lo:hi].nonzero()[:, 0].split(min(_ROWS, max(1, _EFFECTS // d_vocab))):
            effect, place = (self.unit[lo + latents] @ self.W_U).cpu().numpy(), latents.cpu().numpy()
            lists = (out.promoted, out.promoted_effect, out.suppressed, out.suppressed_effect)
            page_kernels.effects(effect, place, *lists, out.low, out.high, out.counts, powers)
            out.defined[place] = True
        return out, _moments(powers)


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


def _no_logits(n: int, d_vocab: int) -> LogitsByLatent:
    """Zeros to be filled."""
    m, bins = min(N_LOGITS, d_vocab), LOGIT_BINS if d_vocab else 0
    ids, values = np.zeros((2, n, m), np.uint32), np.zeros((2, n, m), np.float32)
    low, high = np.zeros((2, n), np.float32)
    counts = np.zeros((n, bins), np.uint32)
    return LogitsByLatent(np.zeros(n, bool), ids[0], values[0], ids[1], values[1], low, high, counts)


def _moments(powers: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """std, skewness, kurtosis [n 3] from the means of the second, third and fourth powers."""
    m2, m3, m4 = powers.T
    m2 = np.where(m2 > 0, m2, np.nan)
    return np.stack([np.sqrt(powers[:, 0]), m3 / m2**1.5, m4 / m2**2], 1)


def _floats(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()


def _first(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    return np.where(np.isfinite(values[:, 0]), values[:, 0].astype(np.float64), np.nan)
