"""Packed columns: versioned, little-endian, struct of arrays, so that numpy.frombuffer decodes them without a loop.

Torch-free: the web process unpacks. Workers pack a shard's at once (core/pages.py). Every blob begins with its version.
"""

from __future__ import annotations

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

# what each kind of blob begins with
EXAMPLES = np.dtype([("version", "u1"), ("width", "u1"), ("n", "<u2"), ("scale", "<f4")])  # width: bytes per position
HISTOGRAM = np.dtype([("version", "u1"), ("_", "u1"), ("first", "<i2"), ("bins", "<u2"), ("intervals", "<u2")])
LOGITS = np.dtype([("version", "u1"), ("_", "u1"), ("m", "<u2"), ("bins", "<u2"), ("low", "<f4"), ("high", "<f4")])
NEIGHBOURS = np.dtype([("version", "u1"), ("_", "u1"), ("m", "<u2")])
MISSES = np.dtype([("version", "u1"), ("n", "u1"), ("_", "2u1")])
COFIRING = np.dtype(
    [("version", "u1"), ("m", "u1"), ("nearest", "u1"), ("opposing", "u1"), ("tokens", "<u4"), ("own", "<u4")]
)
ENRICHMENT = np.dtype([("version", "u1"), ("_", "u1"), ("n", "<u2")])
VOCABULARY = np.dtype([("version", "u1"), ("_", "3u1"), ("n", "<u4")])

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


@dataclass(frozen=True)
class Misses:
    """The tokens at which a latent that never fired came closest to it, one a context, the closest first."""

    context: npt.NDArray[np.uint32]
    peak: npt.NDArray[np.uint16]
    margin: npt.NDArray[np.float32]  # by how much it missed, below 0, in units of activations


@dataclass(frozen=True)
class Together:
    """Firings of a latent and of others on the same sampled tokens."""

    tokens: int  # in the sample
    own: int  # firings of the latent
    latent: npt.NDArray[np.uint32]  # [m] those of largest Jaccard index, largest first
    both: npt.NDArray[np.uint32]  # tokens on which both fire
    firings: npt.NDArray[np.uint32]  # tokens on which the other fires
    nearest: npt.NDArray[np.uint32]  # as `both`, of the nearest decoders, as Neighbours has them
    nearest_firings: npt.NDArray[np.uint32]
    opposing: npt.NDArray[np.uint32]
    opposing_firings: npt.NDArray[np.uint32]

    def jaccard(self, both: int, firings: int) -> float | None:
        """Tokens on which both fire over those on which either does; None where the latent fires on none."""
        return both / (self.own + firings - both) if self.own else None


class _Reader:
    """Takes consecutive arrays from a blob."""

    def __init__(self, blob: bytes, header: np.dtype[Any]) -> None:
        self.blob = bytes(blob)
        self.at = header.itemsize
        self.head = np.frombuffer(self.blob, header, 1)[0]
        if self.head["version"] != VERSION:
            version = self.head["version"]
            raise ValueError(f"packed column of version {version}; this code reads {VERSION}: migrate the run")

    def take(self, dtype: str, n: int) -> Array:
        out = np.frombuffer(self.blob, dtype, n, self.at)
        self.at += out.nbytes
        return out


def bin_edges(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Lower edges of histogram bins: 2^e (1 + j/8), the 8 equal steps of each octave."""
    octave, step = np.divmod(np.asarray(bins), BINS_PER_OCTAVE)
    return np.ldexp(1.0 + step / BINS_PER_OCTAVE, octave + FIRST_OCTAVE)


def unpack_examples(blob: bytes) -> Examples:
    r = _Reader(blob, EXAMPLES)
    n, where = int(r.head["n"]), f"<u{r.head['width']}"
    context, count = r.take("<u4", n), r.take("<u2", n).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    act = r.take("<u2", int(offsets[-1])) * np.float32(float(r.head["scale"]) / 65535)
    interval, peak = r.take("u1", n), r.take(where, n)
    position = r.take(where, int(offsets[-1]))
    return Examples(interval, context, peak.astype(np.uint16), offsets, position.astype(np.uint16), act)


def unpack_histogram(blob: bytes) -> Histogram:
    r = _Reader(blob, HISTOGRAM)
    counts = r.take("<u4", int(r.head["bins"]))
    return Histogram(int(r.head["first"]), counts, r.take("<u4", int(r.head["intervals"])))


def unpack_logits(blob: bytes) -> Logits:
    r = _Reader(blob, LOGITS)
    m, low, high = int(r.head["m"]), float(r.head["low"]), float(r.head["high"])
    up, down = r.take("<u4", m), r.take("<u4", m)
    return Logits(up, r.take("<f4", m), down, r.take("<f4", m), low, high, r.take("<u4", int(r.head["bins"])))


def unpack_neighbours(blob: bytes) -> Neighbours:
    r = _Reader(blob, NEIGHBOURS)
    m = int(r.head["m"])
    near, far = r.take("<u4", m), r.take("<u4", m)
    return Neighbours(near, r.take("<f4", m), far, r.take("<f4", m))


def unpack_misses(blob: bytes | None) -> Misses | None:
    """None of a run of before they were kept, and of latents that fired."""
    if not blob:
        return None
    r = _Reader(blob, MISSES)
    n = int(r.head["n"])
    return Misses(r.take("<u4", n), r.take("<u2", n), r.take("<f4", n))


def unpack_cofiring(blob: bytes | None) -> Together | None:
    """None of a run of before it was counted."""
    if not blob:
        return None
    r = _Reader(blob, COFIRING)
    sizes = [int(r.head[name]) for name in ("m", "m", "m", "nearest", "nearest", "opposing", "opposing")]
    return Together(int(r.head["tokens"]), int(r.head["own"]), *(r.take("<u4", n) for n in sizes))


def unpack_enrichment(blob: bytes) -> npt.NDArray[np.float32]:
    """z of each of the run's token sets, NaN where undefined."""
    r = _Reader(blob, ENRICHMENT)
    return r.take("<f4", int(r.head["n"]))


def token_dtype(d_vocab: int) -> str:
    """How Context.tokens spells ids of a vocabulary of this size."""
    return "<u2" if d_vocab <= 65536 else "<u4"


def pack_vocabulary(tokens: list[bytes], special: list[bool]) -> bytes:
    """Each token's own bytes (parts of characters included), in id order, and a flag for special ones."""
    head = np.zeros(1, VOCABULARY)
    head["version"], head["n"] = VERSION, len(tokens)
    lengths = np.array([len(t) for t in tokens], "<u4")
    return head.tobytes() + lengths.tobytes() + np.array(special, "u1").tobytes() + b"".join(tokens)


def unpack_vocabulary(blob: bytes) -> tuple[list[bytes], list[bool]]:
    r = _Reader(blob, VOCABULARY)
    n = int(r.head["n"])
    ends = np.cumsum(r.take("<u4", n), dtype=np.int64)
    special = r.take("u1", n).astype(bool).tolist()
    at = r.at
    starts = np.concatenate([[0], ends])[:-1].astype(np.int64)
    return [r.blob[at + a : at + b] for a, b in zip(starts.tolist(), ends.tolist(), strict=True)], special
