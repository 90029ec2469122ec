"""Rows of bytes of different lengths, end to end: packed columns and COPY streams are made of them, whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ragged:
    """n rows of bytes."""

    data: npt.NDArray[np.uint8]
    starts: Ints
    #: [n + 1]: row i is data[starts[i] : starts[i + 1]].


def ends(lengths: npt.ArrayLike) -> Ints:
    """Where rows of these lengths begin, and behind them where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def fixed(values: Array) -> Ragged:
    """Rows of one length: values [n …] as they lie in memory."""
    values = np.ascontiguousarray(values)
    return cut(values.reshape(-1), np.arange(len(values) + 1) * int(np.prod(values.shape[1:])))


def cut(values: Array, starts: Ints) -> Ragged:
    """Values as they lie in memory, of which row i is values[starts[i] : starts[i + 1]]."""
    return Ragged(np.ascontiguousarray(values).view(np.uint8), starts * values.itemsize)


def kept(values: Array, keep: npt.NDArray[np.bool_]) -> Ragged:
    """Of each row of values [n m], those to keep [n m]."""
    return cut(values[keep], ends(keep.sum(1)))


def join(parts: Sequence[Ragged]) -> Ragged:
    """Rows of the parts' rows, one behind the other."""
    from sae_backend.core import page_kernels  # Numba, which the web process does without: it imports us with rows.py

    starts = np.sum([p.starts for p in parts], axis=0)
    data, at = np.empty(int(starts[-1]), np.uint8), starts[:-1].copy()
    for part in parts:
        page_kernels.lay(part.data, part.starts, at, data)
    return Ragged(data, starts)
