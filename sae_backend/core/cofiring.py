"""Which latents fire on the same tokens: Jaccard indices of firing sets over a sample of a run's tokens.

Cost: Σ L0² over the sample's tokens, so the sample is cut down to PAIRS a counted token of the run (and MOST_PAIRS).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sae_backend.core import cofiring_kernels
from sae_backend.core.activations import StoredShard
from sae_backend.core.ragged import ends
from sae_backend.core.results import CofiringByLatent, NeighboursByLatent

N_TOGETHER = 10
PAIRS, MOST_PAIRS = 32, 2**27  # of firings of one token, that are counted
Ints = npt.NDArray[np.int64]


class Cofiring:
    """The firings of sampled tokens, by token and by latent: 8 bytes each."""

    def __init__(self, l0: Ints, latent: npt.NDArray[np.uint32], d_sae: int) -> None:
        """l0 [m] firings of each token, their latents [Σ l0] ascending within a token."""
        self.tokens, self.starts, self.latent = len(l0), ends(l0), latent
        self.counts = np.bincount(latent, minlength=d_sae).astype(np.int64)
        self.begins, self.token = ends(self.counts), np.empty(len(latent), np.uint32)
        cofiring_kernels.by_latent(self.starts, latent, self.begins[:-1].copy(), self.token)

    @classmethod
    def read(cls, shards: Sequence[StoredShard], d_sae: int, n_tokens: int) -> Cofiring | None:
        """Of shards in the order of their contexts, out of n_tokens counted ones; None where one has no sample."""
        counts = [shard.sampled("sample_l0") for shard in shards]
        l0 = [c.astype(np.int64) for c in counts if c is not None]
        if len(l0) < len(shards):
            return None
        stride = _stride(np.concatenate(l0), n_tokens)
        kept, latents, first = [], [np.zeros(0, np.uint32)], 0
        for shard, of_shard in zip(shards, l0, strict=True):
            chosen = np.arange(first, first + len(of_shard)) % stride == 0
            first += len(of_shard)
            kept.append(of_shard[chosen])
            there = shard.sampled("sample_latent")
            assert there is not None
            latents.append(there[np.repeat(chosen, of_shard)])
        return cls(np.concatenate(kept), np.concatenate(latents), d_sae)

    def of(self, lo: int, hi: int, neighbours: NeighboursByLatent) -> CofiringByLatent:
        """Of latents lo ≤ i < hi: those of largest Jaccard index, of equal ones the lower, and their neighbours'."""
        there = np.isfinite(np.concatenate([neighbours.nearest_cos, neighbours.opposing_cos], 1))
        asked = np.where(there, np.concatenate([neighbours.nearest, neighbours.opposing], 1), 0).astype(np.int64)
        found, both = np.empty((hi - lo, N_TOGETHER, 2), np.int64), np.empty(asked.shape, np.int64)
        sample = self.starts, self.latent, self.begins, self.token, self.counts
        cofiring_kernels.together(*sample, lo, asked, both, found)
        both, firings = np.where(there, both, -1), np.where(there, self.counts[asked], -1)
        latent, common = found[..., 0], found[..., 1].astype(np.uint32)
        others = self.counts[np.maximum(latent, 0)].astype(np.uint32)
        m, own = neighbours.nearest.shape[1], self.counts[lo:hi].astype(np.uint32)
        beside = both[:, :m], firings[:, :m], both[:, m:], firings[:, m:]
        return CofiringByLatent(self.tokens, own, latent, common, others, *beside)


def _stride(l0: Ints, n_tokens: int) -> int:
    """One sampled token in so many is kept, so that pairs stay within their bound."""
    return max(1, -(-int(np.square(l0).sum()) // max(1, min(PAIRS * n_tokens, MOST_PAIRS))))
