"""Packed columns: versioned, little-endian, struct of arrays, so that numpy.frombuffer decodes them without a loop.

Torch-free: workers pack, the web process unpacks. Every blob begins with its version.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
TOP = 0  # Examples.interval of the strongest contexts; 1 … N_INTERVALS are bands from weak to strong
N_INTERVALS = 10
RANDOM = N_INTERVALS + 1  # a uniform draw over all firing tokens
BINS_PER_OCTAVE = 8  # of the activation histogram
FIRST_OCTAVE, N_OCTAVES = -16, 32
N_BINS = N_OCTAVES * BINS_PER_OCTAVE  # activations outside 2^-16 … 2^16 count in the end bins

_EXAMPLES = struct.Struct("<BBHf")  # version, bytes per position, examples, scale
_HISTOGRAM = struct.Struct("<BxhHH")  # version, first bin, bins, intervals
_LOGITS = struct.Struct("<BxHHff")  # version, tokens each way, histogram bins, range
_NEIGHBOURS = struct.Struct("<BxH")  # version, latents each way
_VOCABULARY = struct.Struct("<BxxxI")  # version, tokens

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Examples:
    """n contexts of one latent, strongest first within each interval."""

    interval: npt.NDArray[np.uint8]  # [n] TOP, 1 … N_INTERVALS, RANDOM
    context: npt.NDArray[np.uint32]  # [n] Context.index
    peak: npt.NDArray[np.uint16]  # [n] position of the token the example is about
    offsets: npt.NDArray[np.int64]  # [n + 1] into position and act
    position: npt.NDArray[np.uint16]  # [nnz] positions where the latent fires, ascending in each context
    act: npt.NDArray[np.float32]  # [nnz] its activations there


@dataclass(frozen=True)
class Histogram:
    """Counts of positive activations: logarithmic bins, and the bands of equal width in (0, max]."""

    first_bin: int
    counts: npt.NDArray[np.uint32]  # bins first_bin, first_bin + 1, …
    intervals: npt.NDArray[np.uint32]  # [N_INTERVALS] firings in each band, weak to strong


@dataclass(frozen=True)
class Logits:
    """Direct effect on the logits, centred over the vocabulary."""

    promoted: npt.NDArray[np.uint32]  # [m] token ids, strongest first
    promoted_effect: npt.NDArray[np.float32]
    suppressed: npt.NDArray[np.uint32]
    suppressed_effect: npt.NDArray[np.float32]
    low: float  # the histogram's range
    high: float
    counts: npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Neighbours:
    """Decoder cosines within the SAE."""

    nearest: npt.NDArray[np.uint32]  # [m] latents, largest cosine first
    nearest_cos: npt.NDArray[np.float32]
    opposing: npt.NDArray[np.uint32]  # [m] latents, smallest cosine first
    opposing_cos: npt.NDArray[np.float32]


class _Reader:
    """Takes consecutive arrays from a blob."""

    def __init__(self, blob: bytes, header: struct.Struct) -> None:
        self.blob = bytes(blob)
        self.at = header.size
        self.head = header.unpack_from(self.blob)
        if self.head[0] != VERSION:
            raise ValueError(f"packed column of version {self.head[0]}; this code reads {VERSION}: migrate the run")

    def take(self, dtype: str, n: int) -> Array:
        out = np.frombuffer(self.blob, dtype, n, self.at)
        self.at += out.nbytes
        return out


def _bytes(dtype: str, array: Array) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()


def bin_edges(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Lower edges of histogram bins: 2^e (1 + j/8), the 8 equal steps of each octave."""
    octave, step = np.divmod(np.asarray(bins), BINS_PER_OCTAVE)
    return np.ldexp(1.0 + step / BINS_PER_OCTAVE, octave + FIRST_OCTAVE)


def pack_examples(e: Examples) -> bytes:
    """Activations are kept as u16 of the largest: error below 8e-6 of it, or 2e-5 where that would give 0."""
    scale = float(e.act.max()) if e.act.size else 0.0
    width = 1 if not e.position.size or int(e.position.max()) < 256 else 2
    quantised = np.rint(e.act / np.float32(scale or 1.0) * 65535).clip(1, 65535)
    where = f"<u{width}"
    parts = (
        _EXAMPLES.pack(VERSION, width, len(e.interval), scale),
        _bytes("<u4", e.context),
        _bytes("<u2", np.diff(e.offsets)),
        _bytes("<u2", quantised),
        _bytes("u1", e.interval),
        _bytes(where, e.peak),
        _bytes(where, e.position),
    )
    return b"".join(parts)


def unpack_examples(blob: bytes) -> Examples:
    r = _Reader(blob, _EXAMPLES)
    _, width, n, scale = r.head
    context, count = r.take("<u4", n), r.take("<u2", n).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    act = r.take("<u2", int(offsets[-1])) * np.float32(scale / 65535)
    interval, peak = r.take("u1", n), r.take(f"<u{width}", n)
    position = r.take(f"<u{width}", int(offsets[-1]))
    return Examples(interval, context, peak.astype(np.uint16), offsets, position.astype(np.uint16), act)


def pack_histogram(h: Histogram) -> bytes:
    head = _HISTOGRAM.pack(VERSION, h.first_bin, len(h.counts), len(h.intervals))
    return head + _bytes("<u4", h.counts) + _bytes("<u4", h.intervals)


def unpack_histogram(blob: bytes) -> Histogram:
    r = _Reader(blob, _HISTOGRAM)
    _, first, bins, intervals = r.head
    return Histogram(first, r.take("<u4", bins), r.take("<u4", intervals))


def pack_logits(x: Logits) -> bytes:
    head = _LOGITS.pack(VERSION, len(x.promoted), len(x.counts), x.low, x.high)
    ids = _bytes("<u4", x.promoted) + _bytes("<u4", x.suppressed)
    return head + ids + _bytes("<f4", x.promoted_effect) + _bytes("<f4", x.suppressed_effect) + _bytes("<u4", x.counts)


def unpack_logits(blob: bytes) -> Logits:
    r = _Reader(blob, _LOGITS)
    _, m, bins, low, high = r.head
    up, down = r.take("<u4", m), r.take("<u4", m)
    return Logits(up, r.take("<f4", m), down, r.take("<f4", m), low, high, r.take("<u4", bins))


def pack_neighbours(x: Neighbours) -> bytes:
    ids = _bytes("<u4", x.nearest) + _bytes("<u4", x.opposing)
    cosines = _bytes("<f4", x.nearest_cos) + _bytes("<f4", x.opposing_cos)
    return _NEIGHBOURS.pack(VERSION, len(x.nearest)) + ids + cosines


def unpack_neighbours(blob: bytes) -> Neighbours:
    r = _Reader(blob, _NEIGHBOURS)
    m = r.head[1]
    near, far = r.take("<u4", m), r.take("<u4", m)
    return Neighbours(near, r.take("<f4", m), far, r.take("<f4", m))


def token_dtype(d_vocab: int) -> str:
    """How Context.tokens spells ids of a vocabulary of this size."""
    return "<u2" if d_vocab <= 65536 else "<u4"


def pack_vocabulary(tokens: list[bytes], special: list[bool]) -> bytes:
    """Each token's own bytes (parts of characters included), in id order, and a flag for special ones."""
    lengths = _bytes("<u4", np.array([len(t) for t in tokens], np.uint32))
    return _VOCABULARY.pack(VERSION, len(tokens)) + lengths + _bytes("u1", np.array(special)) + b"".join(tokens)


def unpack_vocabulary(blob: bytes) -> tuple[list[bytes], list[bool]]:
    r = _Reader(blob, _VOCABULARY)
    n = r.head[1]
    ends = np.cumsum(r.take("<u4", n), dtype=np.int64)
    special = r.take("u1", n).astype(bool).tolist()
    at = r.at
    starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
    return [r.blob[at + a : at + b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)], special
