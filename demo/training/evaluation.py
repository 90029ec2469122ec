"""Held-out figures: what a reconstruction loses of the residual stream and of the model's predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2LMHeadModel

from demo.training.activations import collect, rows
from demo.training.settings import LAYER
from demo.training.sparse import JumpReLU, TopK

Edit = Callable[[Tensor], Tensor]
BATCH = 8192


@dataclass(frozen=True)
class HeldOut:
    """The held-out contexts, and the losses with the residual stream intact and removed."""

    token_rows: Tensor
    hidden: Tensor
    # [position d_in], float32, without position 0
    loss: float
    zero_loss: float
    mean_loss: float


def held_out(lm: GPT2LMHeadModel, tokens: np.ndarray, limit: int) -> HeldOut:
    """Cut at most `limit` rows of a text and measure the losses that stand for recovering nothing."""
    token_rows = torch.from_numpy(rows(tokens, offset=0)[:limit])
    hidden = collect(lm, token_rows.numpy(), torch.float32)
    mean = hidden.mean(0)
    zero_loss = cross_entropy(lm, token_rows, torch.zeros_like)
    mean_loss = cross_entropy(lm, token_rows, mean.expand_as)
    return HeldOut(token_rows, hidden, cross_entropy(lm, token_rows), zero_loss, mean_loss)


@torch.no_grad()
def figures(lm: GPT2LMHeadModel, sae: TopK | JumpReLU, text: HeldOut, training: Tensor) -> dict[str, float]:
    """Figures of one SAE on held-out text, and how many latents are dead on `training` [position d_in]."""
    reconstructed, l0 = [], 0
    for batch in text.hidden.split(BATCH):
        estimate, acts = sae.reconstruct(batch)
        reconstructed.append(estimate)
        l0 += int((acts > 0).sum())
    error = (torch.cat(reconstructed) - text.hidden).square().sum(1).mean()
    variance = (text.hidden - text.hidden.mean(0)).square().sum(1).mean()
    loss = cross_entropy(
        lm, text.token_rows, lambda hidden: sae.reconstruct(hidden.flatten(0, 1))[0].view_as(hidden)
    )
    density = latent_density(sae, training)
    return {
        "l0": round(l0 / len(text.hidden), 2),
        "fvu": round((error / variance).item(), 4),
        "mse_per_dim": round(error.item() / text.hidden.shape[1], 4),
        "cross_entropy": round(loss, 4),
        "recovered_vs_zero": round((text.zero_loss - loss) / (text.zero_loss - text.loss), 4),
        "recovered_vs_mean": round((text.mean_loss - loss) / (text.mean_loss - text.loss), 4),
        "dead": round((density == 0).float().mean().item(), 4),
        "density_below_1e-5": round((density < 1e-5).float().mean().item(), 4),
        "latents_above_10_percent": int((density > 0.1).sum()),
    }


def splice(sae: TopK | JumpReLU) -> Edit:
    """Replace a residual stream [row pos d_in] by what the autoencoder makes of it."""
    return lambda hidden: sae.reconstruct(hidden.flatten(0, 1))[0].view_as(hidden)


@torch.no_grad()
def latent_density(sae: TopK | JumpReLU, hidden: Tensor) -> Tensor:
    """Fraction of positions [d_sae] at which each latent is active."""
    counts = [(sae.encode(batch.float()) > 0).sum(0) for batch in hidden.split(BATCH)]
    return torch.stack(counts).sum(0) / len(hidden)


@torch.no_grad()
def cross_entropy(lm: GPT2LMHeadModel, token_rows: Tensor, edit: Edit | None = None) -> float:
    """Nats a token with the residual stream at the hook point passed through `edit`, position 0 apart.

    Position 1 is predicted from position 0 alone, which no edit touches, and is not counted.
    """

    def replace(module: torch.nn.Module, inputs: tuple[Tensor, ...], hidden: Tensor) -> Tensor:
        return hidden if edit is None else torch.cat([hidden[:, :1], edit(hidden[:, 1:])], 1)

    total = 0.0
    handle = lm.transformer.h[LAYER].register_forward_hook(replace)
    try:
        for batch in token_rows.split(16):
            logits = lm(batch, use_cache=False).logits[:, 1:-1]
            total += F.cross_entropy(logits.flatten(0, 1), batch[:, 2:].flatten()).item() * len(batch)
    finally:
        handle.remove()
    return total / len(token_rows)
