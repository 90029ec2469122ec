"""What a run's dtype costs: the same contexts once in that dtype and once in float32, from the text on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_backend.core import fidelity
from sae_backend.core.config import RunConfig
from sae_backend.core.language_model import LM
from sae_backend.core.run import ContextPass
from sae_backend.core.sae import SparseAutoencoder

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def difference(
    sae: SparseAutoencoder, lm: LM, reference: LM, cfg: RunConfig, special: set[int], tokens: npt.NDArray[np.uint32]
) -> dict[str, Any]:
    """Figures of tokens [n ctx_len] in cfg.dtype beside those in float32, for which `reference` is loaded.

    firings_kept: the fraction of float32's firings that fire in cfg.dtype too; act: the median of |a - a32|/a32 over
    them; l0 and fvu: [in cfg.dtype, in float32].
    """
    cfg = replace(cfg, fidelity_every=1, ce_contexts=0, k_contexts=0)
    rough = _firings(ContextPass(sae, lm, cfg, special), tokens)
    exact = _firings(ContextPass(sae, reference, replace(cfg, dtype="float32"), special), tokens)
    return {
        "tokens": rough.figures["tokens"],
        **compared(rough.place, rough.act, exact.place, exact.act),
        "l0": [rough.figures["l0"], exact.figures["l0"]],
        "fvu": [rough.figures["fvu"], exact.figures["fvu"]],
    }


def compared(place: Ints, act: Floats, exact_place: Ints, exact_act: Floats) -> dict[str, float | None]:
    """firings_kept and act of `difference`, from places of firings, each once, and their activations."""
    _, a, b = np.intersect1d(place, exact_place, assume_unique=True, return_indices=True)
    relative = np.abs(act[a] - exact_act[b]) / exact_act[b]
    return {
        "firings_kept": len(b) / max(1, len(exact_place)),
        "act": float(np.median(relative)) if len(b) else None,
    }


class _Firings:
    def __init__(self, place: Ints, act: Floats, figures: dict[str, Any]) -> None:
        self.place, self.act, self.figures = place, act, figures


def _firings(contexts: ContextPass, tokens: npt.NDArray[np.uint32]) -> _Firings:
    """place [nnz]: latent × tokens + token."""
    shard = contexts.shard(tokens, 0, len(tokens), lambda done: None)
    latent = np.repeat(np.arange(len(shard.indptr) - 1), np.diff(shard.indptr))
    figures = fidelity.figures(fidelity.merged([shard.sums]))
    return _Firings(latent * tokens.size + shard.token, shard.act, figures)


def spread(n_contexts: int, wanted: int) -> list[int]:
    """Which contexts to compare: `wanted` of n, evenly."""
    return [i * n_contexts // min(wanted, n_contexts) for i in range(min(wanted, n_contexts))]
