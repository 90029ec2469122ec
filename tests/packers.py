"""Packed columns one record at a time, as readable as they get: what core/pages.py gives for many, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_backend.core.ragged import Ragged, join
from sae_backend.packing import VERSION, Examples, Histogram, Logits, Misses, Neighbours, Together

EXAMPLES = struct.Struct("<BBHf")  # version, bytes per position, examples, scale
HISTOGRAM = struct.Struct("<BxhHH")  # version, first bin, bins, intervals
LOGITS = struct.Struct("<BxHHff")  # version, tokens each way, histogram bins, range
ENRICHMENT = struct.Struct("<BxH")  # version, sets
NEIGHBOURS = struct.Struct("<BxH")  # version, latents each way


def rows(parts: Sequence[Ragged]) -> list[bytes]:
    """A shard's blobs one by one."""
    packed = join(parts)
    return [packed.data[a:b].tobytes() for a, b in pairwise(packed.starts.tolist())]


def octets(dtype: str, array: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()


def pack_examples(e: Examples) -> bytes:
    scale = float(e.act.max()) if e.act.size else 0.0
    width = 1 if not e.position.size or int(e.position.max()) < 256 else 2
    quantised = np.rint(e.act / np.float32(scale or 1.0) * 65535).clip(1, 65535)
    where = f"<u{width}"
    parts = (
        EXAMPLES.pack(VERSION, width, len(e.interval), scale),
        octets("<u4", e.context),
        octets("<u2", np.diff(e.offsets)),
        octets("<u2", quantised),
        octets("u1", e.interval),
        octets(where, e.peak),
        octets(where, e.position),
    )
    return b"".join(parts)


def pack_histogram(h: Histogram) -> bytes:
    head = HISTOGRAM.pack(VERSION, h.first_bin, len(h.counts), len(h.intervals))
    return head + octets("<u4", h.counts) + octets("<u4", h.intervals)


def pack_logits(x: Logits) -> bytes:
    head = LOGITS.pack(VERSION, len(x.promoted), len(x.counts), x.low, x.high)
    ids = octets("<u4", x.promoted) + octets("<u4", x.suppressed)
    effects = octets("<f4", x.promoted_effect) + octets("<f4", x.suppressed_effect)
    return head + ids + effects + octets("<u4", x.counts)


def pack_enrichment(z: npt.NDArray[np.float32]) -> bytes:
    return ENRICHMENT.pack(VERSION, len(z)) + octets("<f4", z)


def pack_neighbours(x: Neighbours) -> bytes:
    ids = octets("<u4", x.nearest) + octets("<u4", x.opposing)
    cosines = octets("<f4", x.nearest_cos) + octets("<f4", x.opposing_cos)
    return NEIGHBOURS.pack(VERSION, len(x.nearest)) + ids + cosines


def pack_misses(x: Misses) -> bytes:
    """Nothing where there are none."""
    head = struct.pack("<BB2x", VERSION, len(x.context))
    return head + octets("<u4", x.context) + octets("<u2", x.peak) + octets("<f4", x.margin) if len(x.context) else b""


def pack_cofiring(x: Together) -> bytes:
    head = struct.pack("<BBBBII", VERSION, len(x.latent), len(x.nearest), len(x.opposing), x.tokens, x.own)
    lists = (x.latent, x.both, x.firings, x.nearest, x.nearest_firings, x.opposing, x.opposing_firings)
    return head + b"".join(octets("<u4", values) for values in lists)
