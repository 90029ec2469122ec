"""Per-latent statistics and histograms from a latent's firings in token order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sae_backend.core import kernels
from sae_backend.core.activations import Rows
from sae_backend.core.results import HistogramsByLatent, LatentStats, status_of
from sae_backend.packing import BINS_PER_OCTAVE, FIRST_OCTAVE, N_BINS, N_INTERVALS

_FIRST = (127 + FIRST_OCTAVE) * BINS_PER_OCTAVE  # bits >> 20 of the lowest bin's edge
SPARK_BINS = 18


def latent_stats(rows: Rows, n_tokens: int, margin: npt.NDArray[np.float64] | None = None) -> LatentStats:
    """Counts and moments; two passes over each latent's firings, so nothing cancels."""
    firings = np.diff(rows.indptr)
    m = np.full((len(firings), 9), np.nan)
    kernels.moments(rows.indptr, rows.act, n_tokens, m)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (firings >= 4) & (m[:, 2] > 1e-24 * m[:, 1] ** 2)  # equal activations differ by rounding only
        return LatentStats(
            firings=firings,
            density=firings / max(n_tokens, 1),
            status=status_of(firings, n_tokens),
            max_act=m[:, 0],
            mean_act=m[:, 1],
            std_act=np.where(spread, np.sqrt(m[:, 2]), np.nan),
            skewness=np.where(spread, m[:, 3] / m[:, 2] ** 1.5, np.nan),
            kurtosis=np.where(spread, m[:, 4] / m[:, 2] ** 2, np.nan),
            kurtosis_all=np.where(m[:, 6] > 0, m[:, 7] / m[:, 6] ** 2, np.nan),
            kurtosis_zero=m[:, 8],
            margin=np.full(len(firings), np.nan) if margin is None else margin,
        )


def histograms(rows: Rows) -> HistogramsByLatent:
    """Logarithmic bins, 8 an octave, and the bands of equal width in (0, max]; both add up to the firings."""
    n = len(rows.indptr) - 1
    bins = np.zeros((n, N_BINS), np.uint32)
    bands = np.zeros((n, N_INTERVALS), np.uint32)
    kernels.histograms(rows.indptr, rows.act, rows.act.view(np.int32), _FIRST, bins, bands)
    return HistogramsByLatent(bins, bands)


def sparks(rows: Rows) -> npt.NDArray[np.uint8]:
    """The linear histogram of each latent in 18 bars, heights by square root, 255 the tallest."""
    counts = np.zeros((len(rows.indptr) - 1, SPARK_BINS), np.uint32)
    kernels.bands(rows.indptr, rows.act, counts)
    tallest = np.maximum(counts.max(1, keepdims=True), 1)
    return np.ceil(np.sqrt(counts / tallest) * 255).astype(np.uint8)
