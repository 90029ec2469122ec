"""What a shard's COPY brings into the tables is what psycopg would write row by row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from django.db import connection

from sae_backend import rows
from sae_backend.core.results import LatentShard, TokensByLatent
from sae_backend.models import Run
from tests import packers
from tests.backend import synthetic
from tests.backend.synthetic import a_dataset, a_run, a_sae

pytestmark = pytest.mark.django_db(transaction=True)
N = 40
FLOATS = [name for name in rows.STATISTICS if name not in ("firings", "status", "nearest_live")]


@pytest.fixture
def run() -> Run:
    dataset = a_dataset()
    return a_run(a_sae(dataset), dataset)


@pytest.fixture
def shard() -> LatentShard:
    """Dead latents, lists of every length, effects and neighbours missing, infinite statistics."""
    shard = synthetic.shard(100, 100 + N)
    shard.stats.skewness[:3] = np.nan, np.inf, -np.inf
    shard.decoder.nearest_live[::7] = -1
    shard.decoder.b_enc[:4] = -0.0, 5e-324, -1.5e300, 1 / 3
    shard.logits.defined[5:8] = False
    shard.neighbours.nearest_cos[9] = shard.neighbours.opposing_cos[9] = np.nan
    lists = [list(range(2**31 - 3, 2**31 - 3 + i % 4))[:3] for i in range(N)]
    return replace(shard, strongest=TokensByLatent.of(lists))


def statistics(shard: LatentShard) -> Iterator[list[Any]]:
    for i in range(N):
        values = [(shard.stats if hasattr(shard.stats, c) else shard.decoder, c) for c in FLOATS]
        floats = [float(getattr(record, c)[i]) for record, c in values]
        near = int(shard.decoder.nearest_live[i])
        integers = [int(shard.stats.firings[i]), int(shard.stats.status[i]), None if near < 0 else near]
        lists = [shard.strongest[i], shard.logits[i].promoted[:3].tolist()]
        defined = [x if np.isfinite(x) else None for x in floats]
        yield [7, shard.lo + i, *integers, *defined, *lists, shard.sparks[i].tobytes()]


def packed(shard: LatentShard) -> Iterator[list[Any]]:
    assert shard.misses is not None and shard.cofiring is not None
    for i in range(N):
        blobs = (
            packers.pack_examples(shard.examples[i]),
            packers.pack_histogram(shard.histograms[i]),
            packers.pack_logits(shard.logits[i]),
            packers.pack_neighbours(shard.neighbours[i]),
            packers.pack_misses(shard.misses[i]),
            packers.pack_cofiring(shard.cofiring[i]),
            b"" if shard.enrichment is None else packers.pack_enrichment(shard.enrichment[i]),
        )
        yield [7, shard.lo + i, *blobs]


def text_of(table: str) -> list[str]:
    return [str(row[0]) for row in synthetic.query(f"select t::text from {table} t order by index")]


def beside(table: str) -> None:
    """Two empty tables like it."""
    for name in ("ours", "plain"):
        with connection.cursor() as cursor:
            cursor.execute(f"drop table if exists {name}; create temporary table {name} (like {table})")


def test_statistics_are_what_psycopg_writes(run: Run, shard: LatentShard) -> None:
    beside(f"latent_r{run.pk}")
    rows.latents("ours", 7, shard)
    columns = ["run_id", "index", "firings", "status", "nearest_live", *FLOATS, "strongest", "promoted", "spark"]
    types = ["int4", "int4", "int8", "int2", "int4", *["float8"] * len(FLOATS), "int4[]", "int4[]", "bytea"]
    with rows.copy("plain", columns, types) as out:
        for row in statistics(shard):
            out.write_row(row)
    assert len(text_of("plain")) == N
    assert text_of("ours") == text_of("plain")


@pytest.mark.parametrize("sets", [None, 0, 3])
def test_pages_are_what_psycopg_writes(run: Run, shard: LatentShard, sets: int | None) -> None:
    if sets is not None:
        shard = replace(shard, enrichment=np.random.default_rng(0).normal(0, 9, (N, sets)).astype(np.float32))
    beside(f"latent_page_r{run.pk}")
    rows.pages("ours", 7, shard)
    columns = ["run_id", "index", "examples", "histogram", "logits", "neighbours", "misses", "cofiring", "enrichment"]
    with rows.copy("plain", columns, ["int4", "int4", *["bytea"] * 7]) as out:
        for row in packed(shard):
            out.write_row(row)
    assert len(text_of("plain")) == N
    assert text_of("ours") == text_of("plain")


def test_more_than_is_sent_at_once_arrives_whole(run: Run, shard: LatentShard, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(f"latent_page_r{run.pk}")
    rows.pages("plain", 7, shard)
    monkeypatch.setattr(rows, "_PIECE", 1000)
    rows.pages("ours", 7, shard)
    assert text_of("ours") == text_of("plain")


def test_a_run_of_before_there_were_samples_has_empty_ones(run: Run, shard: LatentShard) -> None:
    beside(f"latent_page_r{run.pk}")
    rows.pages("ours", 7, replace(shard, misses=None, cofiring=None))
    lengths = "select distinct length(misses), length(cofiring), length(neighbours) > 0 from ours"
    assert synthetic.query(lengths) == [(0, 0, True)]
