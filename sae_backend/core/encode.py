"""The encoder over every latent at once, keeping only what fires.

Cost: one matmul [n d_in] × [d_in d_sae] and one look at each pre-activation. On a CPU that happens block by block,
while the block is in cache; on an accelerator for as many tokens at once as a share of its memory holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import selection
from sae_backend.core.sae import SparseActs, SparseAutoencoder

ROWS, _COLUMNS = 512, 2048  # of one block of pre-activations: 2 MB in bfloat16
_FEWEST = 64  # rows of a matmul: with fewer, libraries sum in another order and a token's bits depend on its batch
_DENSE = {"cpu": 2**24, "cuda": 2**29}  # pre-activations held at once where no block kernel applies
_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
_WHOLE = {torch.bfloat16: 16, torch.float32: 0}  # bits short of a float32's
_THRESHOLDED = ("standard", "jumprelu", "batchtopk")


@dataclass(frozen=True)
class Firings:
    """What fires in n tokens, in token order: compressed rows of the sparse activations."""

    indptr: Tensor  # [n + 1] int64
    latent: Tensor  # [nnz] int32, ascending within a token
    act: Tensor  # [nnz] float32, positive, on the checkpoint's own scale
    scale: Tensor | None = None  # [n] the token's factor of the canonical scale; None is 1
    watched: Tensor | None = None  # [m d_sae] pre-activations, in the encoder's dtype, of the tokens asked for

    def rows(self) -> Tensor:
        """The token of each firing."""
        n = torch.arange(len(self.indptr) - 1, device=self.indptr.device)
        return n.repeat_interleave(self.indptr.diff(), output_size=len(self.latent))

    def of(self, tokens: Tensor, sae: SparseAutoencoder) -> SparseActs:
        """The firings of some tokens [m] int64, renumbered from 0, as `sae.decode` reads them."""
        counts = self.indptr.diff()[tokens]
        starts = self.indptr[tokens] - (counts.cumsum(0) - counts)
        row = torch.arange(len(tokens), device=tokens.device).repeat_interleave(counts)
        place = torch.arange(len(row), device=row.device) + starts[row]
        return SparseActs(row, self.latent[place], self.act[place], (len(tokens), sae.cfg.d_sae))


class BlockEncoder:
    """Equals SparseAutoencoder.encode up to the rounding of `dtype`, at the speed of its matmul."""

    def __init__(self, sae: SparseAutoencoder, dtype: torch.dtype = torch.float32) -> None:
        self.sae, self.dtype = sae, dtype
        self.plain_topk = sae.cfg.architecture == "topk" and not sae.cfg.rank_by_decoder_norm
        in_blocks = self.plain_topk or sae.cfg.architecture in _THRESHOLDED
        self.in_cache = in_blocks and sae.device.type == "cpu" and dtype in _BITS
        width = _COLUMNS if self.in_cache else sae.cfg.d_sae
        self.blocks = _blocks(sae.W_enc.to(dtype), sae.b_enc.to(dtype), width)
        self.gates = None
        if sae.W_glu is not None and sae.b_glu is not None:
            self.gates = _blocks(sae.W_glu.to(dtype), sae.b_glu.to(dtype), width)
        self.thresholds = _threshold_bits(sae, dtype) if self.in_cache and not self.plain_topk else None

    @torch.no_grad()
    def __call__(self, hidden: Tensor, watch: Tensor | None = None) -> Firings:
        """Firings of hidden [n d_in], with every pre-activation of the rows to watch [m] int64, ascending."""
        normalised = self.sae.normalise(hidden)
        x, scale = normalised.x.to(self.dtype), normalised.undo.scale
        parts = list(self._parts(x, watch)) if len(x) else [_none(x.device)]
        counts = torch.cat([p.indptr.diff() for p in parts])
        indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        latent, act = torch.cat([p.latent for p in parts]), torch.cat([p.act for p in parts])
        watched = [p.watched for p in parts if p.watched is not None]
        seen = torch.cat(watched) if len(watched) > 1 else watched[0] if watched else None
        return Firings(indptr, latent, act, None if scale is None else scale[:, 0], seen)

    def _parts(self, x: Tensor, watch: Tensor | None) -> Iterator[Firings]:
        a = 0
        for part in x.split(self._rows_at_once()):
            b = a + len(part)
            here = None if watch is None else watch[(watch >= a) & (watch < b)] - a
            yield self._rows(part, here if here is not None and len(here) else None)
            a = b

    def with_k(self, k: int) -> BlockEncoder:
        """The same pre-activations, of which the k largest fire, whatever the SAE's own k or thresholds."""
        other = copy(self)
        other.sae = replace(self.sae, cfg=replace(self.sae.cfg, architecture="topk", k=k), threshold=None)
        other.plain_topk, other.thresholds = not self.sae.cfg.rank_by_decoder_norm, None
        return other

    def _rows_at_once(self) -> int:
        return ROWS if self.in_cache else max(_FEWEST, min(8192, _DENSE[self.sae.device.type] // self.sae.cfg.d_sae))

    def _rows(self, x: Tensor, watch: Tensor | None) -> Firings:
        """Firings of x [n d_in], already normalised and in our dtype."""
        n = len(x)
        if n < _FEWEST:
            x = torch.cat([x, x.new_zeros(_FEWEST - n, x.shape[1])])
        found = self._in_cache(x, watch) if self.in_cache else self._dense(x, watch)
        end = int(found.indptr[n])
        return Firings(found.indptr[: n + 1], found.latent[:end], found.act[:end], watched=found.watched)

    def _in_cache(self, x: Tensor, watch: Tensor | None) -> Firings:
        running = self.running(len(x))
        watched = None if watch is None else torch.empty(len(watch), self.sae.cfg.d_sae, dtype=self.dtype)
        for i, (column, _, _) in enumerate(self.blocks):
            pre_acts = self._pre_acts(x, i)
            running.add(pre_acts, column)
            if watched is not None:
                watched[:, column : column + pre_acts.shape[1]] = pre_acts[watch]
        return replace(running.chosen(), watched=watched)

    def _pre_acts(self, x: Tensor, i: int) -> Tensor:
        """[n width] of the i-th block; its gate is rounded to our dtype with it."""
        _, W, b = self.blocks[i]
        pre_acts = torch.addmm(b, x, W)
        if self.gates is not None:
            _, W, b = self.gates[i]
            pre_acts *= torch.addmm(b, x, W).sigmoid_()
        return pre_acts

    def running(self, n: int) -> RunningTopK | RunningThreshold:
        """What looks at the blocks of pre-activations of n tokens, columns ascending."""
        if self.thresholds is not None:
            return RunningThreshold(n, self.thresholds, self.dtype)
        return RunningTopK(n, int(self.sae.cfg.k or 0), self.dtype)

    def _dense(self, x: Tensor, watch: Tensor | None) -> Firings:
        pre_acts = self._pre_acts(x, 0)
        watched = None if watch is None else pre_acts[watch]
        if self.plain_topk:
            return replace(bounded_topk(pre_acts, int(self.sae.cfg.k or 0)), watched=watched)
        acts = self.sae.select(pre_acts.float())
        return Firings(_indptr(acts.counts()), acts.latent, acts.value, watched=watched)


def _blocks(W: Tensor, b: Tensor, width: int) -> list[tuple[int, Tensor, Tensor]]:
    """(first latent, W [d_in width], b [width]) of each block of columns."""
    return [
        (c, W[:, c : c + width].contiguous(), b[c : c + width].contiguous()) for c in range(0, W.shape[1], width)
    ]


class RunningTopK:
    """The k largest positive pre-activations of n tokens, exactly, over blocks of columns given in ascending order."""

    def __init__(self, n: int, k: int, dtype: torch.dtype) -> None:
        self.k, self.dtype = k, dtype
        self._keys = np.empty((n, 4 * k + 4 * selection.LANE), np.int64)
        self._counts, self._bounds = np.zeros(n, np.int32), np.zeros(n, np.int32)

    def add(self, pre_acts: Tensor, column: int) -> None:
        """pre_acts [n columns], the first being latent `column`."""
        bits = pre_acts.view(_BITS[self.dtype]).numpy()
        selection.topk_block(bits, column, self.k, self._keys, self._counts, self._bounds)

    def chosen(self) -> Firings:
        room = int(np.minimum(self._counts, self.k).sum())
        indptr, latent, bits = np.zeros(len(self._counts) + 1, np.int64), *np.empty((2, room), np.int32)
        selection.topk_finish(self._keys, self._counts, self.k, indptr, latent, bits)
        return Firings(torch.from_numpy(indptr), torch.from_numpy(latent), _floats(bits, self.dtype))


class RunningThreshold:
    """Pre-activations above their latent's threshold, over blocks of columns given in ascending order."""

    def __init__(self, n: int, thresholds: npt.NDArray[np.int32], dtype: torch.dtype) -> None:
        self.dtype, self._thresholds = dtype, thresholds
        self._ends: list[npt.NDArray[np.int64]] = []
        self._found: list[npt.NDArray[np.int32]] = []  # [2 nnz]: latents, bits
        self._n, self._room = n, 64 * n

    def add(self, pre_acts: Tensor, column: int) -> None:
        """pre_acts [n columns], the first being latent `column`."""
        bits = pre_acts.view(_BITS[self.dtype]).numpy()
        least = self._thresholds[column : column + bits.shape[1]]
        ends, found = np.empty(self._n, np.int64), np.empty((2, self._room), np.int32)
        m = selection.above(bits, least, column, found[0], found[1], ends)
        if m > self._room:
            self._room = 2 * m
            found = np.empty((2, m), np.int32)
            selection.above(bits, least, column, found[0], found[1], ends)
        self._ends.append(ends)
        self._found.append(found[:, :m].copy())

    def chosen(self) -> Firings:
        counts = sum(np.diff(ends, prepend=0) for ends in self._ends)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        at, out = indptr[:-1].copy(), np.empty((2, int(indptr[-1])), np.int32)
        for ends, found in zip(self._ends, self._found, strict=True):
            selection.weave(ends, found[0], found[1], at, out[0], out[1])
        return Firings(torch.from_numpy(indptr), torch.from_numpy(out[0]), _floats(out[1], self.dtype))


def _threshold_bits(sae: SparseAutoencoder, dtype: torch.dtype) -> npt.NDArray[np.int32]:
    """[d_sae] such that a pre-activation of `dtype` fires exactly where its bits, as an integer, are above.

    A threshold is cut to the bits of the dtype: what is above the cut value in that dtype is above the threshold.
    """
    threshold = torch.zeros(sae.cfg.d_sae) if sae.threshold is None else sae.threshold.float().clamp_min(0.0)
    if dtype == torch.float16:
        below = threshold.half()
        below = torch.where(below.float() > threshold, torch.nextafter(below, torch.zeros_like(below)), below)
        return below.view(torch.int16).numpy().astype(np.int32)
    return threshold.contiguous().view(torch.int32).numpy() >> _WHOLE[dtype]


def _floats(bits: npt.NDArray[np.int32], dtype: torch.dtype) -> Tensor:
    if dtype == torch.float16:
        return torch.from_numpy(bits.astype(np.int16).view(np.float16).astype(np.float32))
    return torch.from_numpy((bits << _WHOLE[dtype]).view(np.float32))


def _indptr(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _none(device: torch.device) -> Firings:
    latent = torch.zeros(0, dtype=torch.int32, device=device)
    return Firings(torch.zeros(1, dtype=torch.int64, device=device), latent, latent.float())


def bounded_topk(pre_acts: Tensor, k: int) -> Firings:
    """The k largest positive pre_acts [n d_sae] of each row, of equal ones the lowest latents, on any device.

    The k-th largest of the maxima of k or more groups of columns bounds the k-th largest of the row from below; what
    reaches it is a few times k, and only that is sorted. Two readings of pre_acts instead of a sort of each row.
    """
    row, latent = ((pre_acts >= _kth_bound(pre_acts, k)) & (pre_acts > 0)).nonzero(as_tuple=True)
    value = pre_acts[row, latent].float()
    order = value.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]  # by row, then by value, then by latent
    counts = torch.bincount(row, minlength=len(pre_acts))
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(row)
    rank[order] = torch.arange(len(row), device=row.device) - starts[row[order]]
    kept = rank < k
    return Firings(
        _indptr(torch.bincount(row[kept], minlength=len(pre_acts))), latent[kept].int(), value[kept]
    )


def _kth_bound(pre_acts: Tensor, k: int) -> Tensor:
    """[n 1], at most each row's k-th largest value."""
    n, d_sae = pre_acts.shape
    groups = max(4 * k, 256)
    width = d_sae // groups
    if width < 2:
        return pre_acts.new_full((n, 1), -torch.inf)
    maxima = pre_acts[:, : groups * width].reshape(n, width, groups).amax(1)
    return maxima.topk(k, dim=1).values[:, -1:]
