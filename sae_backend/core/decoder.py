"""What the weights alone say: norms, neighbours, opposing directions, dimensionality, effect on the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import page_kernels
from sae_backend.core.enrichment import Enrichment
from sae_backend.core.language_model import Unembedding
from sae_backend.core.margins import least_acts
from sae_backend.core.neighbours import Directions
from sae_backend.core.results import DecoderStats, LogitsByLatent, NeighboursByLatent
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.token_sets import TokenSets

N_LOGITS = 10
LOGIT_BINS = 50
_ROWS, _EFFECTS = 256, 1 << 24  # latents, and effects on logits, that are held at once


@dataclass(frozen=True)
class DecoderFacts:
    """Of latents lo ≤ i < hi, in order."""

    stats: DecoderStats
    neighbours: NeighboursByLatent
    logits: LogitsByLatent
    enrichment: npt.NDArray[np.float32] | None


class Decoder:
    """Unit decoder rows of one SAE, ready to be compared; about d_sae × d_out × 4 bytes."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        unembedding: Unembedding | None,
        dtype: torch.dtype = torch.float32,
        sets: TokenSets | None = None,
    ) -> None:
        """dtype: of the first, rough comparison of all pairs; it changes the time, not the result."""
        self.sae = sae
        self.directions = Directions(sae.W_dec, dtype)
        self.unit, self.directed = self.directions.unit, self.directions.directed
        if unembedding is not None and unembedding.weight.shape[0] != sae.cfg.d_out:
            unembedding = None  # the latent does not write to the residual stream: no direct effect
        self.d_vocab = 0 if unembedding is None else unembedding.weight.shape[1]
        self._effect = None if unembedding is None else _times(unembedding.weight.to(sae.device))
        self._enrichment: Enrichment | None = None
        if unembedding is not None and sets is not None:
            self._enrichment = Enrichment(unembedding.weight.to(sae.device), sets)

    @torch.no_grad()
    def facts(self, lo: int, hi: int, live: Tensor, products: Tensor) -> DecoderFacts:
        """Everything about latents lo ≤ i < hi; live [d_sae] bool are the latents that D_i and `products` count."""
        others = self.directions.neighbours(lo, hi)
        nearest_live, nearest_live_cos = self.directions.nearest_live(lo, hi, others, live)
        logits, moments = self._logits(lo, hi)
        stats = DecoderStats(
            decoder_norm=_floats(self.sae.decoder_norm[lo:hi]),
            b_enc=_floats(self.sae.b_enc[lo:hi]),
            encoder_decoder_cos=self._encoder_cosine(lo, hi),
            nearest_cos=_first(others.nearest_cos),
            nearest_live=nearest_live,
            nearest_live_cos=nearest_live_cos,
            opposing_cos=_first(others.opposing_cos),
            dimensionality=self.directions.dimensionality(lo, hi, live, products),
            threshold=self._threshold(lo, hi),
            since_fired=self._since_fired(lo, hi),
            logit_std=moments[:, 0],
            logit_skewness=moments[:, 1],
            logit_kurtosis=moments[:, 2],
        )
        enriched = None if self._enrichment is None else self._enrichment.z(self.unit[lo:hi], moments[:, 0])
        return DecoderFacts(stats, NeighboursByLatent(**vars(others)), logits, enriched)

    def _since_fired(self, lo: int, hi: int) -> npt.NDArray[np.float64]:
        counted = self.sae.since_fired
        return np.full(hi - lo, np.nan) if counted is None else _floats(counted[lo:hi])

    def _threshold(self, lo: int, hi: int) -> npt.NDArray[np.float64]:
        """NaN without thresholds, or where every token brings another scale."""
        least = least_acts(self.sae)
        if least is None or self.sae.cfg.input_norm in ("layer_norm", "constant_norm"):
            return np.full(hi - lo, np.nan)
        return _floats(least[lo:hi])

    def _encoder_cosine(self, lo: int, hi: int) -> npt.NDArray[np.float64]:
        """NaN where the encoder and decoder live in different spaces (transcoders) or a norm is zero."""
        if self.sae.cfg.hook_name_out is not None or self.sae.cfg.d_in != self.sae.cfg.d_out:
            return np.full(hi - lo, np.nan)
        # contiguous, or the order of the sums would depend on how many latents there are
        encoder, unit = self.sae.W_enc[:, lo:hi].T.contiguous().double(), self.unit[lo:hi].double()
        norm = encoder.norm(dim=1) * unit.norm(dim=1)
        return _floats((encoder * unit).sum(1) / torch.where(norm > 0, norm, torch.nan))

    def _logits(self, lo: int, hi: int) -> tuple[LogitsByLatent, npt.NDArray[np.float64]]:
        """Effects on the logits, and their std, skewness and kurtosis [n 3] over the vocabulary."""
        out, powers = _no_logits(hi - lo, self.d_vocab), np.full((hi - lo, 3), np.nan)
        if self._effect is None:
            return out, powers
        directed, step = self.directed[lo:hi].nonzero()[:, 0], min(_ROWS, max(1, _EFFECTS // self.d_vocab))
        for a in range(0, len(directed), step):
            latents = directed[a : a + step]
            rows = self.unit[lo + latents]
            effect, place = _of_any(self._effect, rows).cpu().numpy(), latents.cpu().numpy()
            lists = (out.promoted, out.promoted_effect, out.suppressed, out.suppressed_effect)
            page_kernels.effects(effect, place, *lists, out.low, out.high, out.counts, powers)
            out.defined[place] = True
        return out, _moments(powers)


def features_per_dimension(W_dec: Tensor) -> float:
    """‖W_dec‖_F²/d_out, on the checkpoint's scale."""
    return float(torch.linalg.vector_norm(W_dec, dtype=torch.float64)) ** 2 / W_dec.shape[1]


def _times(W: Tensor) -> Callable[[Tensor], Tensor]:
    """rows ↦ rows @ W; on CPUs by oneDNN, which uses AVX-512 on any maker's, twice as fast as MKL on another's."""
    if W.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda rows: rows @ W
    columns = W.T.contiguous().to_mkldnn()
    return lambda rows: torch.nn.functional.linear(rows.to_mkldnn(), columns).to_dense()


def _of_any(times: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """A single row would be multiplied in another order than several, and give other bits."""
    return times(rows) if len(rows) > 1 else times(torch.cat([rows, rows]))[:1]


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
