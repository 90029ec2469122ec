"""python -m bench.million: an SAE of 1,048,576 latents on this machine: memory, time by stage, loading, pages.

Every latent's rows are really loaded, indexed and published; but of the shards of latents, whose cost is one comparison
of all pairs, only the first few are computed here. What is scaled up from them is named so. The rows that are loaded
are those of the demo's 4,096 latents over and over: on so few tokens a latent of a million fires twice, and its page
is empty, while theirs are full.
"""

from __future__ import annotations

import os
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from bench import crowd, pages, pipeline
from bench.report import Clock, line
from bench.site import site

LATENTS = int(os.environ.get("BENCH_LATENTS", 1 << 20))
TOKENS = int(os.environ.get("BENCH_TOKENS", 65_536))
COMPUTED = int(os.environ.get("BENCH_SHARDS", 2))  # shards of latents


def main() -> None:
    with site() as folder:
        measure(folder)


def measure(folder: Path) -> None:
    from demo import ROOT
    from demo.corpus import documents
    from sae_backend import jobs, runs
    from sae_backend.models import Run
    from sae_backend.registry import register_dataset, register_lm

    lm = register_lm("bench", str(ROOT / "model"))
    dataset = register_dataset("standard library", "bench", lm, documents(), 256, TOKENS)
    sae = _imported(pipeline.checkpoint(folder, LATENTS), lm)
    run = runs.create(sae, dataset, jobs.run_config())
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING, started_at=run.created_at)
    _contexts(run)
    _latents(run)
    _load(run, crowd.demo_rows(lm, dataset)[1])
    _publish(run)
    run.refresh_from_db()
    pages.measure(run, "million_")


def _memory(stage: str) -> None:
    line(f"peak_memory_{stage}", getrusage(RUSAGE_SELF).ru_maxrss / 2**20, "GiB, of this process so far")


def _imported(checkpoint: Path, lm: Any) -> Any:
    clock = Clock()
    with clock():
        sae = pipeline.imported(checkpoint, lm)
    line("million_import", clock.wall, "s")
    _memory("import")
    return sae


def _contexts(run: Any) -> None:
    from sae_backend import jobs

    clock = Clock()
    with clock():
        for shard in run.shards.filter(kind="contexts").order_by("index"):
            jobs.compute_contexts(run.pk, shard.index)
    line("million_contexts", clock.wall / run.dataset.n_tokens * 1e6, "microseconds a token, forward and encoder")
    _memory("contexts")


def _latents(run: Any) -> None:
    """Time the first shards, which are not loaded."""
    from sae_backend import kept

    run.refresh_from_db()
    first, shards = Clock(), list(run.shards.filter(kind="latents").order_by("index")[: 1 + COMPUTED])
    with first():
        latents = kept.latent_pass(run.pk, run.computed_at)
        list(latents.pieces(0, 64))  # whatever is made once
    line("million_latents_begin", first.wall, "s, of every worker once")
    clock = Clock()
    for shard in shards[:COMPUTED]:
        with clock():
            for _ in latents.pieces(shard.lo, shard.hi):
                pass
    computed = sum(s.hi - s.lo for s in shards[:COMPUTED])
    line("million_latents", clock.wall / computed * 1e6, f"microseconds a latent, of {computed:,} computed")
    line("million_latents_all", clock.wall / computed * LATENTS, f"s, scaled from {computed:,} latents to all")
    _memory("latents")


def _load(run: Any, pieces: list[Any]) -> None:
    from sae_backend import claims, queue, store

    clock = Clock()
    for shard in run.shards.filter(kind="latents").order_by("index"):
        claimed = claims.claim(run.pk, shard.kind, shard.index, "bench")
        assert claimed is not None
        with clock():
            assert store.load_latents(claimed, crowd.moved(pieces, shard))
    queue.continue_after_latents(run.pk)
    line("million_loaded_per_second", run.sae.d_sae / clock.wall, "latents/s, packing included")


def _publish(run: Any) -> None:
    from django.db import connection

    from sae_backend import jobs

    clock = Clock()
    with clock():
        jobs.publish(run.pk)
    line("million_publish", clock.wall, "s, indexes and figures included")
    with connection.cursor() as cursor:
        cursor.execute(
            "select pg_total_relation_size(%s), pg_total_relation_size(%s)",
            [f"latent_r{run.pk}", f"latent_page_r{run.pk}"],
        )
        statistics, page = cursor.fetchone()
    line("million_database", (statistics + page) / 2**30, "GiB, indexes included")
    line("million_database_statistics", statistics / 2**30, "GiB, indexes included")


if __name__ == "__main__":
    main()
