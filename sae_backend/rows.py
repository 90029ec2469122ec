"""Rows of computed results, as binary COPY sends them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import numpy.typing as npt
from django.db import connection

from sae_backend import packing
from sae_backend.core.results import DecoderStats, LatentShard, LatentStats

STATISTICS = [f.name for f in (*fields(LatentStats), *fields(DecoderStats))]
_INTEGERS = {"firings": "int8", "status": "int2"}


@contextmanager
def copy(table: str, columns: Sequence[str], types: Sequence[str]) -> Iterator[Any]:
    """A binary COPY inside the current transaction."""
    names = ", ".join(f'"{c}"' for c in columns)
    query = f"copy {table} ({names}) from stdin (format binary)"
    # psycopg's own errors become Django's, as everywhere else
    with connection.wrap_database_errors, connection.cursor() as cursor, cursor.copy(query) as out:
        out.set_types(types)
        yield out


def latents(table: str, run_id: int, result: LatentShard) -> None:
    """The statistics of a shard: what tables sort and filter by."""
    columns = ["run_id", "index", *STATISTICS, "strongest", "promoted", "spark"]
    types = ["int4", "int4", *(_INTEGERS.get(c, "float8") for c in STATISTICS), "int4[]", "int4[]", "bytea"]
    values = [_plain(getattr(result.stats if hasattr(result.stats, c) else result.decoder, c)) for c in STATISTICS]
    with copy(table, columns, types) as out:
        for i, statistics in enumerate(zip(*values, strict=True)):
            promoted = result.logits[i].promoted[:3].tolist()
            row = (run_id, result.lo + i, *statistics, result.strongest[i], promoted, result.sparks[i].tobytes())
            out.write_row(row)


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    """Python numbers, None for what is undefined."""
    return [None if isinstance(v, float) and not math.isfinite(v) else v for v in values.tolist()]


def pages(table: str, run_id: int, result: LatentShard) -> None:
    """The packed columns of a shard: what a latent's page shows whole."""
    columns = ["run_id", "index", "examples", "histogram", "logits", "neighbours"]
    with copy(table, columns, ["int4", "int4", "bytea", "bytea", "bytea", "bytea"]) as out:
        for i in range(result.hi - result.lo):
            blobs = (
                packing.pack_examples(result.examples[i]),
                packing.pack_histogram(result.histograms[i]),
                packing.pack_logits(result.logits[i]),
                packing.pack_neighbours(result.neighbours[i]),
            )
            out.write_row((run_id, result.lo + i, *blobs))
