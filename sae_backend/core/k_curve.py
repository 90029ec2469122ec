"""Reconstruction with fewer or more latents than an SAE was trained with: FVU against k, as Gao et al. (2024) plot it.

The k' strongest positive pre-activations of each token are decoded, chosen and valued as the SAE itself does, for
k' = 1, 2, 4 … and its own k. Measured on a few contexts alone, so that its cost does not grow with the run.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_backend.core.config import SaeConfig
from sae_backend.core.encode import Firings
from sae_backend.core.sae import SparseActs, SparseAutoencoder

TIMES = 4  # the curve goes so many times beyond the SAE's own k
WITHOUT_K = 64  # where a BatchTopK checkpoint does not say its k
Part = dict[str, list[float]]  # vectors that add up over contexts: one number each, or one for each k'


def ks(cfg: SaeConfig) -> list[int]:
    """k' of the curve, ascending; none where the activation function has no k."""
    if cfg.architecture not in ("topk", "batchtopk"):
        return []
    own = own_k(cfg)
    most = min(cfg.d_sae, TIMES * (own or WITHOUT_K))
    powers = {2**i for i in range(most.bit_length()) if 2**i <= most}
    return sorted(powers | ({own} if own else set()))


def own_k(cfg: SaeConfig) -> int | None:
    """Latents a token that it was trained with: BatchTopK's is a mean, which only its metadata may say."""
    if cfg.k is not None:
        return cfg.k
    said = cfg.metadata.get("k")
    return said if isinstance(said, int) and 0 < said <= cfg.d_sae else None


def part(sae: SparseAutoencoder, x: Tensor, target: Tensor, strongest: Firings, wanted: list[int]) -> Part:
    """Sums over tokens x [n d_in]; target [n d_out] is what is reconstructed, `strongest` the largest k' latents."""
    acts = strongest.of(torch.arange(len(x), device=x.device), sae)
    rank = ranks(acts, sae.rank_scale)
    square, squares = target.double().square().sum(1), []
    for k in wanted:
        kept = rank < k
        recon = sae.decode(SparseActs(acts.token[kept], acts.latent[kept], acts.value[kept], acts.shape), x)
        squares.append((target - recon).double().square().sum(1))
    errors, some = torch.stack(squares), square > 0  # [k' n]
    counts = acts.counts()
    return {
        "tokens": [float(len(x))],
        "square": [float(square.sum())],
        "total": target.double().sum(0).tolist(),
        "relative": [float(some.sum())],
        "error": errors.sum(1).tolist(),
        "relative_error": (errors[:, some] / square[some]).sum(1).tolist(),
        "active": [float(counts.clamp_max(k).sum()) for k in wanted],
    }


def ranks(acts: SparseActs, scale: Tensor | None = None) -> Tensor:
    """[nnz] place of each firing among its token's, the largest first; of equal ones the lowest latent.

    With a scale [d_sae], of what is scaled: SparseAutoencoder.rank_scale.
    """
    value = acts.value if scale is None else acts.value * scale[acts.latent]
    order = value.argsort(descending=True, stable=True)
    order = order[acts.token[order].argsort(stable=True)]
    counts = acts.counts()
    starts = (counts.cumsum(0) - counts)[acts.token]  # as firings come sorted by token
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device) - starts
    return rank


def added(first: Part, second: Part) -> Part:
    """Sums over the tokens of both."""
    if not first or not second:
        return first or second
    return {name: np.add(values, second[name]).tolist() for name, values in first.items()}


def figures(cfg: SaeConfig, sums: Part) -> dict[str, Any] | None:
    """The curve of a run's summary: [k', L0, FVU, normalised MSE] of each k'; None where there is none."""
    if not sums or not sums["tokens"][0]:
        return None
    n, square = sums["tokens"][0], sums["square"][0]
    variance = square - float(np.square(sums["total"]).sum()) / n
    rows = zip(ks(cfg), sums["active"], sums["error"], sums["relative_error"], strict=True)
    points = [
        [
            k,
            active / n,
            _ratio(error, variance if variance > 1e-12 * square else 0.0),  # below, rounding of equal states
            _ratio(relative, sums["relative"][0]),
        ]
        for k, active, error, relative in rows
    ]
    return {"k": own_k(cfg), "tokens": int(n), "points": points}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole and math.isfinite(part / whole) else None
