"""What the weights alone say: norms, neighbours, opposing directions, dimensionality, effect on the logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core.language_model import Unembedding
from sae_backend.core.results import DecoderStats
from sae_backend.core.sae import SparseAutoencoder, top_k
from sae_backend.packing import Logits, Neighbours

N_NEIGHBOURS = 10
N_LOGITS = 10
LOGIT_BINS = 50
_NO_IDS, _NO_FLOATS = np.zeros(0, np.uint32), np.zeros(0, np.float32)
_NO_LOGITS = Logits(_NO_IDS, _NO_FLOATS, _NO_IDS, _NO_FLOATS, 0.0, 0.0, _NO_IDS)
_COLUMNS = 16384  # latents compared at once
_ROWS = 256  # latents whose logits are held at once


@dataclass(frozen=True)
class DecoderFacts:
    """Of latents lo ≤ i < hi, in order."""

    stats: DecoderStats
    neighbours: list[Neighbours]
    logits: list[Logits]


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
        cut = zip(near, near_cos, far, far_cos, strict=True)
        return DecoderFacts(stats, [_finite(*row) for row in cut], logits)

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

    def _logits(self, lo: int, hi: int) -> tuple[list[Logits], npt.NDArray[np.float64]]:
        records, moments = [_NO_LOGITS] * (hi - lo), np.full((hi - lo, 3), np.nan)
        if self.W_U is None:
            return records, moments
        directed = (lo + self.directed[lo:hi].nonzero()[:, 0]).split(_ROWS)
        for latents in directed:
            effect = self.unit[latents] @ self.W_U
            effect -= effect.mean(1, keepdim=True)
            places = (latents - lo).cpu().numpy()
            moments[places] = _moments(effect)
            for place, record in zip(places.tolist(), _logit_records(effect), strict=True):
                records[place] = record
        return records, moments


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


def _logit_records(effect: Tensor) -> list[Logits]:
    """Strongest tokens each way and a histogram of effect [n d_vocab]."""
    m = min(N_LOGITS, effect.shape[1])
    up, down = effect.topk(m, dim=1), effect.topk(m, dim=1, largest=False)
    low, high = effect.amin(1), effect.amax(1)
    width = (high - low).clamp_min(1e-30)
    bins = ((effect - low[:, None]) * (LOGIT_BINS / width)[:, None]).long().clamp_(0, LOGIT_BINS - 1)
    bins += torch.arange(len(effect), device=effect.device)[:, None] * LOGIT_BINS
    counts = torch.bincount(bins.reshape(-1), minlength=len(effect) * LOGIT_BINS).reshape(-1, LOGIT_BINS)
    ids = (x.cpu().numpy().astype(np.uint32) for x in (up.indices, down.indices, counts))
    floats = (x.cpu().numpy() for x in (up.values, down.values, low, high))
    rows = zip(*ids, *floats, strict=True)
    return [Logits(p, pe, s, se, float(lo), float(hi), c) for p, s, c, pe, se, lo, hi in rows]


def _moments(effect: Tensor) -> npt.NDArray[np.float64]:
    """std, skewness, kurtosis [n 3] of centred effect over the vocabulary."""
    x = effect.double()
    m2, m3, m4 = x.square().mean(1), x.pow(3).mean(1), x.square().square().mean(1)
    flat = m2 <= 0
    skewness = torch.where(flat, torch.nan, m3 / m2.pow(1.5))
    return torch.stack([m2.sqrt(), skewness, torch.where(flat, torch.nan, m4 / m2.square())], 1).cpu().numpy()


def _floats(tensor: Tensor) -> npt.NDArray[np.float64]:
    return tensor.detach().double().cpu().numpy()


def _first(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    return np.where(np.isfinite(values[:, 0]), values[:, 0].astype(np.float64), np.nan)


def _finite(
    near: npt.NDArray[np.uint32], near_cos: npt.NDArray[np.float32],
    far: npt.NDArray[np.uint32], far_cos: npt.NDArray[np.float32],
) -> Neighbours:  # fmt: skip
    """Without what has no cosine."""
    n, f = np.isfinite(near_cos), np.isfinite(far_cos)
    return Neighbours(near[n], near_cos[n], far[f], far_cos[f])
