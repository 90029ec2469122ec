"""SAEs and hidden states whose sums are exact in float32 and in bfloat16, so that ties are ties on any machine.

Hidden states are a table of small whole numbers (the input of block 0 of a language model with rounded embeddings),
weights are quarters, decoder rows have norms that are whole numbers times powers of two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae_backend.core import language_model
from sae_backend.core.config import SaeConfig
from sae_backend.core.language_model import LM
from sae_backend.core.sae import SparseAutoencoder
from tests.core.small import save_lm

D_IN = 8
HOOK = "blocks.0.hook_resid_pre"
_DIRECTIONS = [[1.0], [-1.0], [3.0, 4.0], [2.0, 2.0, 1.0], [-1.0, 2.0, 2.0], [1.0, 1.0, 1.0, -1.0], [0.0]]


def table_lm(folder: Path, exact: bool = True, dtype: torch.dtype = torch.float32) -> LM:
    """A language model that reads embeddings of whole numbers, the same at every place; or of any numbers."""
    lm = language_model.load(str(save_lm(folder, "gpt2", n_embd=D_IN, n_layer=1)), dtype)
    g = torch.Generator().manual_seed(0)
    embed, place = lm.hf.transformer.wte.weight, lm.hf.transformer.wpe.weight
    if exact:
        embed.copy_(torch.randint(-3, 4, embed.shape, generator=g))
        embed[:, 0] = embed[:, 0].sign() + 2  # no token's vector is zero
        place.zero_()
    return lm


def hidden_of(lm: LM, tokens: np.ndarray) -> np.ndarray:
    """[contexts ctx_len D_IN] what block 0 reads, from the tables alone."""
    embed, place = (t.float().numpy() for t in (lm.hf.transformer.wte.weight, lm.hf.transformer.wpe.weight))
    return embed[tokens] + place[: tokens.shape[1]]


def exact_sae(architecture: str, d_sae: int, seed: int, k: int = 1, **options: Any) -> SparseAutoencoder:
    """Pre-activations are multiples of an eighth below 32; some latents are dead, constant, or without a direction."""
    g = np.random.default_rng(seed)

    def whole(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.from_numpy(g.integers(low, high + 1, shape)).float()

    # tanh stays far from 1, where float32 can tell no two apart
    step = 1 / 64 if architecture == "tanh_relu" else 1 / 4
    W_enc, b_enc = whole(-4, 4, D_IN, d_sae) * step, whole(-2, 2, d_sae) * step
    kind = g.integers(0, 8, d_sae)
    W_enc[:, kind <= 1] = 0
    b_enc[kind == 0], b_enc[kind == 1] = -step, 12 * step
    W_dec = torch.zeros(d_sae, D_IN)
    for row in W_dec:
        direction = torch.tensor(_DIRECTIONS[g.integers(len(_DIRECTIONS))])
        row[: len(direction)] = direction * 2.0 ** g.integers(-2, 3)
    extra: dict[str, torch.Tensor] = {}
    if architecture == "jumprelu":
        extra = {"threshold": whole(-2, 12, d_sae) / 4}
    if architecture == "batchtopk":
        extra = {"threshold": torch.full((d_sae,), 1.5)}
    if architecture == "gated":
        extra = {"b_gate": whole(-8, 4, d_sae) / 4, "r_mag": torch.zeros(d_sae), "b_mag": whole(-4, 4, d_sae) / 4}
    cfg = SaeConfig(architecture, D_IN, d_sae, D_IN, HOOK, k=k if architecture == "topk" else None, **options)  # type: ignore[arg-type]
    return SparseAutoencoder(cfg, W_enc, b_enc, W_dec, whole(-1, 1, D_IN), **extra)
