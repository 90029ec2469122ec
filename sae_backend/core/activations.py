"""A shard of contexts as a sparse matrix [d_sae tokens], by latent: what one pass over the text leaves behind.

Everything a latent's page needs follows from that latent's row alone, in token order: counts, moments, histogram,
top contexts, uniform samples, and the activations around each. So shards need no merging beyond laying rows end to
end, and the result cannot depend on batch size, number of workers or their order.
"""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from sae_backend.core import kernels
from sae_backend.core.digests import Digest
from sae_backend.core.encode import Firings

_SAMPLED = ("sample_l0", "sample_latent", "margin", "margin_token")


def _none() -> npt.NDArray[np.uint32]:
    return np.zeros(0, np.uint32)


def _no_margins() -> npt.NDArray[np.float32]:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class ActivationShard:
    """Firings of contexts lo ≤ c < lo + n, on the canonical scale, sorted by latent and then by token."""

    lo: int
    tokens: npt.NDArray[np.uint32]  # [n ctx_len] token ids
    indptr: npt.NDArray[np.int64]  # [d_sae + 1]; stored in four bytes
    token: npt.NDArray[np.uint32]  # [nnz] context within the shard × ctx_len + position
    act: npt.NDArray[np.float32]  # [nnz]
    sums: dict[str, Any]  # fidelity.Sums as plain numbers
    sample_l0: npt.NDArray[np.uint32] = field(default_factory=_none)
    #: [m] firings of each token of the contexts that are sampled, in order.
    sample_latent: npt.NDArray[np.uint32] = field(default_factory=_none)
    #: Their latents, ascending within a token.
    margin: npt.NDArray[np.float32] = field(default_factory=_no_margins)
    margin_token: npt.NDArray[np.uint32] = field(default_factory=_none)
    #: [d_sae n] as margins.Closest has them, tokens as in `token`; n is 0 without sampled contexts.

    def save(self, path: Path) -> int:
        """Write atomically: a killed worker leaves no half file under this name. Returns the file's checksum.

        Nothing is forced to the disk: a file that a crash of the host has cut short fails its checksum, and what it
        held is computed again.
        """
        if self.indptr[-1] >= 2**32:
            raise ValueError(f"{self.indptr[-1]:,} firings in one shard; take fewer contexts a shard")
        arrays = {"tokens": self.tokens, "indptr": self.indptr.astype(np.uint32), "token": self.token, "act": self.act}
        arrays |= {name: getattr(self, name) for name in _SAMPLED}
        meta = {"lo": str(self.lo), "sums": json.dumps(self.sums)}
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # workers on other hosts share numbers
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = Digest()
        try:
            with partial.open("wb", buffering=0) as file:
                for part in (memoryview(_header(arrays, meta)), *(a.data.cast("B") for a in arrays.values() if a.size)):
                    digest.update(part)
                    _write(file, part)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)  # on a full disk it would take the room that is needed
        return digest.value()


def _header(arrays: dict[str, npt.NDArray[Any]], meta: dict[str, str]) -> bytes:
    """As safetensors has it; its own writer copies every array first, which takes longer than the disk."""
    entries: dict[str, Any] = {"__metadata__": meta}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = {"u": "U32", "f": "F32"}[array.dtype.kind]
        entries[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write(file: IO[bytes], rest: memoryview) -> None:
    """A single write may take less than all: at most 2 GiB on Linux."""
    while rest:
        rest = rest[file.write(rest) :]


class StoredShard:
    """A saved ActivationShard; only the rows asked for are read, and no file stays open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with safe_open(str(path), framework="np") as file:
            meta = file.metadata()
        self.lo = int(meta["lo"])
        self.sums: dict[str, Any] = json.loads(meta["sums"])

    @property
    def tokens(self) -> npt.NDArray[np.uint32]:
        with safe_open(str(self.path), framework="np") as file:
            return file.get_tensor("tokens")

    def sampled(self, name: str) -> npt.NDArray[Any] | None:
        """sample_l0, sample_latent, margin or margin_token; None in a file of before there were samples."""
        with safe_open(str(self.path), framework="np") as file:
            return file.get_tensor(name) if name in file.keys() else None  # noqa: SIM118  # it is no mapping

    def counts(self, lo: int, hi: int) -> npt.NDArray[np.int64]:
        """Firings of latents lo ≤ i < hi."""
        with safe_open(str(self.path), framework="np") as file:
            return np.diff(file.get_slice("indptr")[lo : hi + 1].astype(np.int64))

    def rows(self, lo: int, hi: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """token and act of latents lo ≤ i < hi, end to end."""
        with safe_open(str(self.path), framework="np") as file:
            a, b = (int(file.get_slice("indptr")[i : i + 1][0]) for i in (lo, hi))
            if a == b:  # safetensors refuses empty slices
                return np.zeros(0, np.uint32), np.zeros(0, np.float32)
            return file.get_slice("token")[a:b], file.get_slice("act")[a:b]


class Part:
    """Firings of some tokens on the canonical scale, in token order, on the host or still on an accelerator."""

    def __init__(
        self, firings: Firings, decoder_norm: Tensor, place: npt.NDArray[np.uint32],
        sampled: npt.NDArray[np.bool_] | None = None,
    ) -> None:  # fmt: skip
        """place [n] says where each of the n tokens stands in the shard; sampled [n] which are kept by token, too."""
        on_host = decoder_norm.device.type == "cpu"
        rows = np.zeros(0, np.int64) if sampled is None else np.flatnonzero(sampled)
        (self._on_host if on_host else self._on_device)(firings, decoder_norm, place, rows)
        self.sample_l0 = self.l0[rows].astype(np.uint32)

    def _on_host(
        self, firings: Firings, decoder_norm: Tensor, place: npt.NDArray[np.uint32], rows: npt.NDArray[np.int64]
    ) -> None:
        indptr, latent, act = (t.numpy().copy() for t in (firings.indptr, firings.latent, firings.act))
        scale = np.zeros(0, np.float32) if firings.scale is None else firings.scale.numpy()
        token, counts = np.empty(len(latent), np.uint32), np.zeros(len(decoder_norm), np.uint32)
        m = kernels.canonical(indptr, latent, act, decoder_norm.numpy(), scale, place, token, counts)
        self.token, self.latent, self.act, self.counts = token[:m], latent[:m], act[:m], counts
        self.l0: npt.NDArray[np.int64] = np.diff(indptr)
        of_rows = [latent[indptr[r] : indptr[r + 1]] for r in rows.tolist()]
        self.sample_latent = np.concatenate([np.zeros(0, np.int32), *of_rows]).astype(np.uint32)

    def _on_device(
        self, firings: Firings, decoder_norm: Tensor, place: npt.NDArray[np.uint32], rows: npt.NDArray[np.int64]
    ) -> None:
        row, latent = firings.rows(), firings.latent
        act = firings.act * decoder_norm[latent]
        if firings.scale is not None:
            act = act * firings.scale[row]
        writes = act > 0
        row, latent, act = row[writes], latent[writes], act[writes]
        chosen = torch.isin(row, torch.from_numpy(rows).to(row.device))
        self.sample_latent = latent[chosen].cpu().numpy().astype(np.uint32)
        counts = torch.bincount(latent, minlength=len(decoder_norm))
        order = latent.argsort(stable=True)  # by latent here, where sorting is quick
        places = torch.from_numpy(place.astype(np.int64)).to(row.device)
        self.l0 = torch.bincount(row, minlength=len(place)).cpu().numpy()
        self.token = places[row][order].cpu().numpy().astype(np.uint32)
        self.latent, self.act = latent[order].cpu().numpy(), act[order].cpu().numpy()
        self.counts = counts.cpu().numpy().astype(np.uint32)


def by_latent(
    parts: Sequence[Part], d_sae: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """(indptr, token, act) of parts in token order; on one core, while the lanes are at the next shard."""
    counts = np.zeros(d_sae, np.int64)
    for part in parts:
        counts += part.counts
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    token, act = np.empty(int(indptr[-1]), np.uint32), np.empty(int(indptr[-1]), np.float32)
    at = indptr[:-1].copy()
    for part in parts:
        kernels.scatter(part.token, part.latent, part.act, at, token, act)
    return indptr, token, act


@dataclass(frozen=True)
class Rows:
    """Latents lo ≤ i < lo + n over the whole corpus: token counts from 0 over all contexts in order."""

    indptr: npt.NDArray[np.int64]  # [n + 1]
    token: npt.NDArray[np.int64]  # [nnz]
    act: npt.NDArray[np.float32]  # [nnz]


def gather(shards: list[StoredShard], lo: int, hi: int, ctx_len: int) -> Rows:
    """Lay the shards' rows of latents lo ≤ i < hi end to end, shards in the order of their contexts."""
    shards = sorted(shards, key=lambda s: s.lo)
    counts = np.stack([s.counts(lo, hi) for s in shards])  # [shards latents]
    indptr = np.concatenate([[0], np.cumsum(counts.sum(0))]).astype(np.int64)
    starts = indptr[:-1] + np.concatenate([np.zeros((1, hi - lo), np.int64), np.cumsum(counts, 0)[:-1]])
    token, act = np.empty(int(indptr[-1]), np.int64), np.empty(int(indptr[-1]), np.float32)
    for shard, at, count in zip(shards, starts, counts, strict=True):
        part_token, part_act = shard.rows(lo, hi)
        kernels.lay(part_token, part_act, count, at, shard.lo * ctx_len, token, act)
    return Rows(indptr, token, act)
