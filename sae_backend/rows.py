"""Rows of computed results, as binary COPY sends them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
from django.db import connection

from sae_backend.core import pages as packed
from sae_backend.core.contexts import Contexts
from sae_backend.core.ragged import Ragged, fixed, join, kept
from sae_backend.core.results import DecoderStats, LatentShard, LatentStats

STATISTICS = [f.name for f in (*fields(LatentStats), *fields(DecoderStats))]
_INTEGERS = {"firings": ">i8", "status": ">i2", "nearest_live": ">i4"}
_FLOATS = [c for c in STATISTICS if c not in _INTEGERS]
_BEGIN, _END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"
_INT4 = 23  # PostgreSQL's number of the type
_PIECE = 1 << 20  # bytes sent at once


@contextmanager
def copy(table: str, columns: Sequence[str], types: Sequence[str] = ()) -> Iterator[Any]:
    """A binary COPY inside the current transaction; types, where rows are written one by one."""
    names = ", ".join(f'"{c}"' for c in columns)
    query = f"copy {table} ({names}) from stdin (format binary)"
    # psycopg's own errors become Django's, as everywhere else
    with connection.wrap_database_errors, connection.cursor() as cursor, cursor.copy(query) as out:
        if types:
            out.set_types(types)
        yield out


def documents(dataset_id: int, first: int, names: Sequence[str]) -> None:
    """Where contexts' texts came from, numbered from `first` on."""
    with copy("document", ["dataset_id", "index", "name"], ["int8", "int4", "text"]) as out:
        for i, name in enumerate(names, first):
            out.write_row((dataset_id, i, name.replace("\0", "�")))


def contexts(
    table: str, dataset_id: int, first: int, block: Contexts, dtype: npt.DTypeLike, texts: Iterable[str]
) -> None:
    """A block of contexts, numbered from `first` on."""
    packed_tokens = block.tokens.astype(dtype)
    columns = ["dataset_id", "index", "document", "position", "tokens", "text"]
    with copy(table, columns, ["int8", "int4", "int4", "int4", "bytea", "text"]) as out:
        for i, text in enumerate(texts):
            place = int(block.document[i]), int(block.position[i])
            out.write_row((dataset_id, first + i, *place, packed_tokens[i].tobytes(), text.replace("\0", "�")))


def latents(table: str, run_id: int, result: LatentShard) -> None:
    """The statistics of a shard: what tables sort and filter by."""
    values = {**vars(result.stats), **vars(result.decoder)}
    promoted = np.where(result.logits.defined[:, None], result.logits.promoted[:, :3].astype(np.int64), -1)
    with copy(table, ["run_id", "index", *_INTEGERS, *_FLOATS, "strongest", "promoted", "spark"]) as out:
        parts = [
            *_key(run_id, result),
            *(_integers(values[c], dtype) for c, dtype in _INTEGERS.items()),
            _floats(np.stack([values[c] for c in _FLOATS], 1)),
            _arrays(result.strongest.ids),
            _arrays(promoted),
            *_octets((fixed(result.sparks),)),
        ]
        _send(out, parts, 5 + len(STATISTICS))


def pages(table: str, run_id: int, result: LatentShard) -> None:
    """The packed columns of a shard: what a latent's page shows whole."""
    names = ["examples", "histogram", "logits", "neighbours", "misses", "cofiring", "enrichment"]
    with copy(table, ["run_id", "index", *names]) as out:
        columns = (
            packed.examples(result.examples),
            packed.histograms(result.histograms),
            packed.logits(result.logits),
            packed.neighbours(result.neighbours),
            packed.misses(result.misses) if result.misses else _nothing(result),
            packed.cofiring(result.cofiring) if result.cofiring else _nothing(result),
            _nothing(result) if result.enrichment is None else packed.enrichments(result.enrichment),
        )
        _send(out, [*_key(run_id, result), *(part for c in columns for part in _octets(c))], 2 + len(columns))


# ---- the binary format of COPY: a row is the number of its fields, and each field its length and its value -----------


def _send(out: Any, parts: Sequence[Ragged], n_fields: int) -> None:
    count = fixed(np.full(len(parts[0].starts) - 1, n_fields, ">i2"))
    rows = join([count, *parts]).data.data
    out.write(_BEGIN)
    for a in range(0, len(rows), _PIECE):
        out.write(rows[a : a + _PIECE])
    out.write(_END)


def _key(run_id: int, result: LatentShard) -> tuple[Ragged, Ragged]:
    index = np.arange(result.lo, result.hi)
    return _integers(np.full(len(index), run_id), ">i4"), _integers(index, ">i4")


def _integers(values: npt.NDArray[Any], dtype: str) -> Ragged:
    """NULL, a length of -1, for what is negative: no number of ours is."""
    size, defined = np.dtype(dtype).itemsize, values >= 0
    field = np.empty(len(values), [("length", ">i4"), ("value", dtype)])
    field["length"], field["value"] = np.where(defined, size, -1), values
    if defined.all():
        return fixed(field)
    octets = field.view(np.uint8).reshape(len(values), 4 + size)
    return kept(octets, (np.arange(4 + size) < 4) | defined[:, None])


def _floats(values: npt.NDArray[np.float64]) -> Ragged:
    """Fields [n m]; NULL, a length of -1, for what is undefined."""
    defined = np.isfinite(values)
    field = np.empty(values.shape, [("length", ">i4"), ("value", ">f8")])
    field["length"], field["value"] = np.where(defined, 8, -1), values
    octets = field.view(np.uint8).reshape(*values.shape, 12)
    keep = np.ones(octets.shape, bool)
    keep[..., 4:] = defined[..., None]
    return kept(octets.reshape(len(values), -1), keep.reshape(len(values), -1))


def _arrays(ids: npt.NDArray[np.int64]) -> Ragged:
    """integer[] of each row of ids [n m] up to the first -1: length, dimensions, nulls, type, size, 1, then fields."""
    column, n = np.arange(6 + 2 * ids.shape[1]), (ids >= 0).sum(1)
    words = np.empty((len(ids), len(column)), ">i4")
    words[:, 0], words[:, 1] = np.where(n, 20 + 8 * n, 12), n > 0
    words[:, 2], words[:, 3], words[:, 4], words[:, 5] = 0, _INT4, n, 1
    words[:, 6::2], words[:, 7::2] = 4, ids
    return kept(words, column < np.where(n, 6 + 2 * n, 4)[:, None])


def _nothing(result: LatentShard) -> packed.Parts:
    """Empty values, as of latents that have nothing to say."""
    return (fixed(np.zeros((result.hi - result.lo, 0), np.uint8)),)


def _octets(parts: packed.Parts) -> packed.Parts:
    """A value in parts, behind its length."""
    return fixed(np.diff(sum(p.starts for p in parts)).astype(">i4")), *parts
