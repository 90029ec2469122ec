"""The packed columns of a shard's latents, as sae_backend.packing reads them one by one.

A column comes in parts: a latent's blob is its row of each, one behind the other (`ragged.join`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sae_backend import packing
from sae_backend.core.ragged import Ints, Ragged, cut, ends, fixed, kept
from sae_backend.core.results import (
    CofiringByLatent,
    ExamplesByLatent,
    HistogramsByLatent,
    LogitsByLatent,
    MissesByLatent,
    NeighboursByLatent,
)

Array = npt.NDArray[Any]
Parts = tuple[Ragged, ...]


def examples(e: ExamplesByLatent) -> Parts:
    """Activations are kept as u16 of the latent's largest: error below 8e-6 of it, or 2e-5 where that would give 0."""
    starts = e.offsets[e.starts]  # [n + 1] into position and act
    scale, wide = _largest(e.act, starts), _largest(e.position, starts) > 255
    unit = np.repeat(np.where(scale > 0, scale, np.float32(1)), np.diff(starts))
    quantised = np.rint(e.act / unit * np.float32(65535)).clip(1, 65535)
    head = _heads(packing.EXAMPLES, len(e), width=1 + wide, n=np.diff(e.starts), scale=scale)
    return (
        head,
        cut(np.asarray(e.context, "<u4"), e.starts),
        cut(np.diff(e.offsets).astype("<u2"), e.starts),
        cut(quantised.astype("<u2"), starts),
        cut(e.interval, e.starts),
        _positions(e.peak, e.starts, wide),
        _positions(e.position, starts, wide),
    )


def _largest(values: Array, starts: Ints) -> Array:
    """Of each row, 0 where it is empty."""
    out, some = np.zeros(len(starts) - 1, values.dtype), np.diff(starts) > 0
    out[some] = np.maximum.reduceat(values, starts[:-1][some])
    return out


def _positions(values: Array, starts: Ints, wide: npt.NDArray[np.bool_]) -> Ragged:
    """In one byte each, or in two in the rows that are wide."""
    if not wide.any():
        return cut(values.astype("u1"), starts)
    octets, lengths = values.astype("<u2").view(np.uint8).reshape(-1, 2), np.diff(starts)
    keep = np.stack([np.ones(len(values), bool), np.repeat(wide, lengths)], 1)
    return Ragged(octets[keep], ends(lengths * (1 + wide)))


def histograms(h: HistogramsByLatent) -> Parts:
    """From the first bin that counts anything to the last."""
    used, n_bins = h.bins > 0, h.bins.shape[1]
    first, end = used.argmax(1), np.where(used.any(1), n_bins - used[:, ::-1].argmax(1), 0)
    column = np.arange(n_bins)
    keep = (column >= first[:, None]) & (column < end[:, None])
    head = _heads(packing.HISTOGRAM, len(h), first=first, bins=end - first, intervals=h.intervals.shape[1])
    return head, kept(np.asarray(h.bins, "<u4"), keep), fixed(np.asarray(h.intervals, "<u4"))


def logits(x: LogitsByLatent) -> Parts:
    """A header of zeros where there are none."""
    on = x.defined
    shape = {"m": x.promoted.shape[1] * on, "bins": x.counts.shape[1] * on}
    head = _heads(packing.LOGITS, len(x), **shape, low=np.where(on, x.low, 0), high=np.where(on, x.high, 0))
    ids = [np.asarray(x.promoted, "<u4"), np.asarray(x.suppressed, "<u4")]
    values = [np.asarray(x.promoted_effect, "<f4"), np.asarray(x.suppressed_effect, "<f4")]
    columns = [*ids, *(v.view("<u4") for v in values), np.asarray(x.counts, "<u4")]
    body = np.concatenate(columns, axis=1)[on]
    return head, cut(body.reshape(-1), ends(body.shape[1] * on))


def neighbours(x: NeighboursByLatent) -> Parts:
    """Without what has no cosine."""
    near, far = np.isfinite(x.nearest_cos), np.isfinite(x.opposing_cos)
    ids = [kept(np.asarray(x.nearest, "<u4"), near), kept(np.asarray(x.opposing, "<u4"), far)]
    cosines = [kept(np.asarray(x.nearest_cos, "<f4"), near), kept(np.asarray(x.opposing_cos, "<f4"), far)]
    return _heads(packing.NEIGHBOURS, len(x), m=near.sum(1)), *ids, *cosines


def misses(x: MissesByLatent) -> Parts:
    """Nothing of a latent that has none."""
    there = np.isfinite(x.margin)
    n = there.sum(1)
    head = np.zeros(len(x), packing.MISSES)
    head["version"], head["n"] = packing.VERSION, n
    values = np.asarray(x.context, "<u4"), np.asarray(x.peak, "<u2"), np.asarray(x.margin, "<f4")
    return cut(head[n > 0], ends(n > 0)), *(kept(v, there) for v in values)


def cofiring(x: CofiringByLatent) -> Parts:
    """Without places that hold no latent."""
    some, near, far = (ids >= 0 for ids in (x.latent, x.nearest, x.opposing))
    counts = {"m": some.sum(1), "nearest": near.sum(1), "opposing": far.sum(1)}
    head = _heads(packing.COFIRING, len(x), **counts, tokens=x.tokens, own=x.own)
    lists: list[Array] = [x.latent, x.both, x.firings, x.nearest, x.nearest_firings, x.opposing, x.opposing_firings]
    keep = [some] * 3 + [near] * 2 + [far] * 2
    return head, *(kept(values.astype("<u4"), which) for values, which in zip(lists, keep, strict=True))


def enrichments(z: npt.NDArray[np.float32]) -> Parts:
    """z [n n_sets]."""
    return _heads(packing.ENRICHMENT, len(z), n=z.shape[1]), fixed(np.asarray(z, "<f4"))


def _heads(header: np.dtype[Any], n_latents: int, **values: Any) -> Ragged:
    heads = np.zeros(n_latents, header)
    heads["version"] = packing.VERSION
    for name, value in values.items():
        heads[name] = value
    return fixed(heads)
