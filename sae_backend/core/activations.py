"""A shard of contexts as a sparse matrix [d_sae tokens], by latent: what one pass over the text leaves behind.

Everything a latent's page needs follows from that latent's row alone, in token order: counts, moments, histogram,
top contexts, uniform samples, and the activations around each. So shards need no merging beyond laying rows end to
end, and the result cannot depend on batch size, number of workers or their order.
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from sae_backend.core import kernels


@dataclass(frozen=True)
class ActivationShard:
    """Firings of contexts lo ≤ c < lo + n, on the canonical scale, sorted by latent and then by token."""

    lo: int
    tokens: npt.NDArray[np.uint32]  # [n ctx_len] token ids
    indptr: npt.NDArray[np.int64]  # [d_sae + 1]
    token: npt.NDArray[np.uint32]  # [nnz] context within the shard × ctx_len + position
    act: npt.NDArray[np.float32]  # [nnz]
    sums: dict[str, Any]  # fidelity.Sums as plain numbers

    def save(self, path: Path) -> None:
        """Write atomically: a killed worker leaves no half file under this name."""
        arrays: dict[str, npt.NDArray[Any]] = {n: getattr(self, n) for n in ("tokens", "indptr", "token", "act")}
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # workers on other hosts share numbers
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(arrays, partial, {"lo": str(self.lo), "sums": json.dumps(self.sums)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)


class StoredShard:
    """A saved ActivationShard; only the rows asked for are read."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(str(path), framework="np")
        meta = self._file.metadata()
        self.lo = int(meta["lo"])
        self.sums: dict[str, Any] = json.loads(meta["sums"])
        self.indptr: npt.NDArray[np.int64] = self._file.get_tensor("indptr")

    @property
    def tokens(self) -> npt.NDArray[np.uint32]:
        return self._file.get_tensor("tokens")

    def rows(self, lo: int, hi: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """token and act of latents lo ≤ i < hi, end to end."""
        a, b = int(self.indptr[lo]), int(self.indptr[hi])
        if a == b:  # safetensors refuses empty slices
            return np.zeros(0, np.uint32), np.zeros(0, np.float32)
        return self._file.get_slice("token")[a:b], self._file.get_slice("act")[a:b]


def by_latent(
    latent: npt.NDArray[np.int32], token: npt.NDArray[np.uint32], act: npt.NDArray[np.float32], d_sae: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """(indptr, token, act) of firings given in token order."""
    indptr = np.zeros(d_sae + 1, np.int64)
    out_token, out_act = np.empty_like(token), np.empty_like(act)
    kernels.transpose(token, latent, act, indptr, out_token, out_act)
    return indptr, out_token, out_act


@dataclass(frozen=True)
class Rows:
    """Latents lo ≤ i < lo + n over the whole corpus: token counts from 0 over all contexts in order."""

    indptr: npt.NDArray[np.int64]  # [n + 1]
    token: npt.NDArray[np.int64]  # [nnz]
    act: npt.NDArray[np.float32]  # [nnz]


def gather(shards: list[StoredShard], lo: int, hi: int, ctx_len: int) -> Rows:
    """Lay the shards' rows of latents lo ≤ i < hi end to end, shards in the order of their contexts."""
    shards = sorted(shards, key=lambda s: s.lo)
    counts = np.stack([np.diff(s.indptr[lo : hi + 1]) for s in shards])  # [shards latents]
    indptr = np.concatenate([[0], np.cumsum(counts.sum(0))]).astype(np.int64)
    starts = indptr[:-1] + np.concatenate([np.zeros((1, hi - lo), np.int64), np.cumsum(counts, 0)[:-1]])
    token, act = np.empty(int(indptr[-1]), np.int64), np.empty(int(indptr[-1]), np.float32)
    for shard, at, count in zip(shards, starts, counts, strict=True):
        part_token, part_act = shard.rows(lo, hi)
        kernels.lay(part_token, part_act, count, at, shard.lo * ctx_len, token, act)
    return Rows(indptr, token, act)
