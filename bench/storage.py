"""What a latent costs in PostgreSQL, and how near our loading comes to a raw COPY of the same bytes."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any

import numpy as np

from bench.report import Clock, line

TURNS = 3


def measure(run: Any) -> None:
    """Sizes and loading rates of a live run's rows."""
    from django.db import connection

    tables = (f"latent_r{run.pk}", f"latent_page_r{run.pk}")
    d_sae = run.sae.d_sae
    with connection.cursor() as cursor:
        statistics, page = (_size(cursor, t) for t in tables)
        line("bytes_per_latent", (statistics + page) / d_sae, "bytes, indexes included")
        line("bytes_per_latent_statistics", statistics / d_sae, "bytes, indexes included")
        line("bytes_per_latent_page", page / d_sae, "bytes, indexes included")
        dumps = [_dump(cursor, t) for t in tables]
        ours, raw = [], []
        for _ in range(TURNS):
            ours.append(_load_as_workers_do(run))
            raw.append(_copy_raw(cursor, tables, dumps))
    wall = min(clock.wall for clock in ours)
    line("copy_ratio", min(raw) / wall, "time of a raw COPY over ours, packing included; 1 is the limit")
    line("latents_loaded_per_second", d_sae / wall, "latents/s")
    line("loading_cpu", min(clock.cpu for clock in ours) / d_sae * 1e6, "µs a latent, PostgreSQL's own not counted")
    line("latents_copied_raw_per_second", d_sae / min(raw), "latents/s")


def _size(cursor: Any, table: str) -> int:
    cursor.execute("select pg_total_relation_size(%s)", [table])
    return int(cursor.fetchone()[0])


def _dump(cursor: Any, table: str) -> bytes:
    with cursor.copy(f"copy {table} to stdout (format binary)") as copy:
        return b"".join(bytes(part) for part in copy)


def _load_as_workers_do(run: Any) -> Clock:
    """Time to load every latent of a second run, shard by shard; that run is thrown away."""
    from sae_backend import claims, runs, store
    from sae_backend.models import Run, RunShard

    again = runs.create(run.sae, run.dataset, run.config)
    Run.objects.filter(pk=again.pk).update(state=Run.State.LOADING)
    spent = Clock()
    for index, result in enumerate(_results(run)):
        shard = claims.claim(again.pk, RunShard.Kind.LATENTS, index, "bench")
        assert shard is not None
        with spent():
            store.load_latents(shard, [result])
    runs.cancel(again.pk)
    store.drop_tables(again.pk)
    return spent


def _results(run: Any) -> list[Any]:
    """What the workers handed to the store, read back from the live run."""
    if not _kept:
        shards = run.shards.filter(kind="latents").order_by("index")
        _kept.extend(_read_back(run.pk, s.lo, s.hi) for s in shards)
    return _kept


_kept: list[Any] = []


def _read_back(run_id: int, lo: int, hi: int) -> Any:
    from sae_backend import packing
    from sae_backend.core import results
    from sae_backend.rows import STATISTICS

    rows = _select("latent", [*STATISTICS, "strongest", "spark"], run_id, lo, hi)
    columns = dict(zip([*STATISTICS, "strongest", "spark"], zip(*rows, strict=True), strict=True))
    packed = _select("latent_page", ["examples", "histogram", "logits", "neighbours"], run_id, lo, hi)
    pages = list(zip(*packed, strict=True))
    return results.LatentShard(
        lo, hi, _record(results.LatentStats, columns), _record(results.DecoderStats, columns),
        results.TokensByLatent.of(columns["strongest"]),
        np.stack([np.frombuffer(b, np.uint8) for b in columns["spark"]]),
        results.ExamplesByLatent.of([packing.unpack_examples(b) for b in pages[0]]),
        results.HistogramsByLatent.of([packing.unpack_histogram(b) for b in pages[1]]),
        results.LogitsByLatent.of([packing.unpack_logits(b) for b in pages[2]]),
        results.NeighboursByLatent.of([packing.unpack_neighbours(b) for b in pages[3]]),
    )  # fmt: skip


def _select(table: str, columns: list[str], run_id: int, lo: int, hi: int) -> list[tuple[Any, ...]]:
    from django.db import connection

    with connection.cursor() as cursor:
        where = "where run_id = %s and index >= %s and index < %s order by index"
        cursor.execute(f"select {', '.join(columns)} from {table} {where}", [run_id, lo, hi])
        return cursor.fetchall()


def _record(kind: Any, columns: dict[str, Any]) -> Any:
    """A record of arrays from columns of a table, undefined as NaN, or as -1 where it is a latent."""
    integers = {"firings": np.int64, "status": np.int16, "nearest_live": np.int64}
    columns = {**columns, "nearest_live": [-1 if i is None else i for i in columns["nearest_live"]]}
    values = {f.name: columns[f.name] for f in fields(kind)}
    return kind(**{k: np.array(v, integers.get(k, np.float64)) for k, v in values.items()})


def _copy_raw(cursor: Any, tables: tuple[str, str], dumps: list[bytes]) -> float:
    """Seconds to COPY the same rows into bare tables, committed once each."""
    spent = 0.0
    for table, dump in zip(tables, dumps, strict=True):
        cursor.execute(f"create table raw_copy (like {table} including storage including compression)")
        begun = time.perf_counter()
        with cursor.copy("copy raw_copy from stdin (format binary)") as copy:
            for a in range(0, len(dump), 1 << 20):
                copy.write(dump[a : a + (1 << 20)])
        spent += time.perf_counter() - begun
        cursor.execute("drop table raw_copy")
    return spent
