"""What a language model's norms do: their linear part, and hidden states normalised as TransformerLens has them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def normalised(norm: nn.Module, hidden: Tensor) -> Tensor:
    """What TransformerLens calls normalised: before the norm's gain and bias, in float32."""
    hidden, width = hidden.float(), hidden.shape[-1:]
    if isinstance(norm, nn.LayerNorm):
        return torch.nn.functional.layer_norm(hidden, width, eps=norm.eps)
    eps: Any = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return torch.nn.functional.rms_norm(hidden, width, eps=eps)


@torch.no_grad()
def linear_part(norm: nn.Module, d_model: int, device: torch.device) -> tuple[Tensor, bool]:
    """A norm's gain [d_model] and whether it removes the mean: measured, as modules keep them in many ways."""
    norm = copy.deepcopy(norm).float()
    place = torch.arange(d_model, device=device)
    probe = (100.0 + place / d_model) * (1 - 2 * (place % 2))  # far above any epsilon, nowhere near 0
    probe -= probe.mean()
    gain = (norm(probe) - norm(-probe)) / 2 * probe.square().mean().sqrt() / probe  # a bias cancels
    moved = (norm(probe + 1000) - norm(probe)).norm()
    return gain, bool(moved < 0.1 * norm(probe).norm())
