"""Decoder directions of two SAEs of one shape, row by row: how far training still turned each."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ROWS = 65_536


@torch.no_grad()
def row_cosines(first: Tensor, second: Tensor) -> npt.NDArray[np.float32]:
    """cos(first[i], second[i]) of [n d_out] both, in float64; NaN where a row is zero."""
    if first.shape != second.shape:
        raise ValueError(f"W_dec is {tuple(first.shape)} and {tuple(second.shape)}; a series has one shape")
    parts = [_cosines(a.double(), b.double()) for a, b in zip(first.split(_ROWS), second.split(_ROWS), strict=True)]
    return torch.cat(parts).float().cpu().numpy()


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
