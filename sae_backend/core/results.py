"""What a run hands to storage: torch-free records of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sae_backend.packing import Examples, Histogram, Logits, Neighbours

Floats = npt.NDArray[np.float64]
DEAD, RARE, ALIVE, DENSE = range(4)
RARE_DENSITY, RARE_FIRINGS, DENSE_DENSITY = 1e-5, 10, 0.1


@dataclass(frozen=True)
class LatentStats:
    """Statistics of n latents, float64; NaN where undefined (NULL in the database)."""

    firings: npt.NDArray[np.int64]
    #: Counted tokens with activation > 0.
    density: Floats
    #: firings / N
    status: npt.NDArray[np.int16]
    #: DEAD, RARE, ALIVE or DENSE.
    max_act: Floats
    mean_act: Floats
    std_act: Floats
    skewness: Floats
    kurtosis: Floats
    #: m4/m2² over firing tokens (Pearson: 3 for a Gaussian); undefined below 4 firings or at variance 0.
    kurtosis_all: Floats
    #: The same over all N tokens, zeros included.
    kurtosis_zero: Floats
    #: E[a⁴]/E[a²]² over all tokens.


@dataclass(frozen=True)
class DecoderStats:
    """What the weights alone say of n latents; NaN where undefined."""

    decoder_norm: Floats
    b_enc: Floats
    encoder_decoder_cos: Floats
    nearest_cos: Floats
    opposing_cos: Floats
    dimensionality: Floats
    #: D_i over live latents and itself.
    logit_std: Floats
    logit_skewness: Floats
    logit_kurtosis: Floats


@dataclass(frozen=True)
class LatentShard:
    """Everything about latents lo ≤ i < hi that a run stores."""

    lo: int
    hi: int
    stats: LatentStats
    decoder: DecoderStats
    strongest: Sequence[list[int]]
    #: Up to 3 distinct peak tokens of the top contexts of each latent.
    sparks: npt.NDArray[np.uint8]
    #: [n 18] shape of the activation histogram over (0, max].
    examples: Sequence[Examples]
    histograms: Sequence[Histogram]
    logits: Sequence[Logits]
    neighbours: Sequence[Neighbours]


def status_of(firings: npt.NDArray[np.int64], n_tokens: int) -> npt.NDArray[np.int16]:
    """Dead, rare, alive or dense, by the definitions in docs/statistics.md."""
    density = firings / max(n_tokens, 1)
    status = np.full(len(firings), ALIVE, np.int16)
    status[density > DENSE_DENSITY] = DENSE
    status[(density < RARE_DENSITY) | (firings < RARE_FIRINGS)] = RARE
    status[firings == 0] = DEAD
    return status
