"""Our pipeline: from contexts in the database to published pages, the servers' CPU counted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import psutil

from bench.report import Clock

ROWS, COLUMNS = 512, 2048  # of one block of cosines

class Ours:
    """A site whose runs compute in this process; its servers are children of it."""

    def __init__(self, lm: Path) -> None:
        from sae_backend.registry import register_lm

        self.lm = register_lm("bench", str(lm))
        self.dataset = cache(self._dataset)
        self.spent = cache(self._spent)

    def _dataset(self, tokens: int) -> Any:
        from demo.corpus import documents
        from sae_backend.registry import register_dataset

        return register_dataset(f"{tokens} tokens", "bench", self.lm, documents(), self.lm.n_ctx, tokens)

    def _spent(self, checkpoint: Path, tokens: int, dtype: str) -> float:
        """CPU seconds of a whole run, once a short one has loaded the weights and compiled the kernels."""
        sae, dataset = self._sae(checkpoint), self.dataset(tokens)
        _run(sae, self.dataset(16 * self.lm.n_ctx), dtype)
        begun = _cpu()
        _run(sae, dataset, dtype)
        return _cpu() - begun

    def floor(self, checkpoint: Path, tokens: int, dtype: str) -> tuple[float, float]:
        """CPU seconds of F (bench.floor) and of the bare products of the weights, for which a run gives more."""
        from bench.floor import Floor
        from sae_backend import jobs, runs

        sae, dataset = self._sae(checkpoint), self.dataset(tokens)
        run = runs.create(sae, dataset, jobs.run_config(dtype=dtype))
        floor = Floor(run.pk)
        for shard in run.shards.filter(kind="contexts").order_by("index"):
            floor.shard(shard)
        runs.cancel(run.pk)
        return floor.F.cpu, _products(floor.sae, floor.lm, dtype)

    def _sae(self, checkpoint: Path) -> Any:
        from sae_backend import jobs
        from sae_backend.models import SaeImport

        imported = SaeImport.objects.create(name=checkpoint.name, source=str(checkpoint), lm=self.lm)
        jobs.import_sae(imported.pk)
        imported.refresh_from_db()
        assert imported.sae is not None, imported.error
        return imported.sae


def _products(sae: Any, lm: Any, dtype: str) -> float:
    """CPU seconds of each pair of directions once, and of every direction with the unembedding."""
    import torch

    directions, unembedding = sae.W_dec.to(getattr(torch, dtype)), lm.unembedding().weight.to(getattr(torch, dtype))
    with (clock := Clock())():
        for a in range(0, len(directions), ROWS):
            for b in range(a, len(directions), COLUMNS):
                directions[a : a + ROWS] @ directions[b : b + COLUMNS].T
            directions[a : a + ROWS] @ unembedding
    return clock.cpu


def _cpu() -> float:
    """CPU seconds of this process, of PostgreSQL and Redis below it, and of every process of theirs that has ended."""
    me = psutil.Process()
    return sum(sum(p.cpu_times()[:4]) for p in (me, *me.children(recursive=True)))


def _run(sae: Any, dataset: Any, dtype: str) -> None:
    """Everything that workers do for a run, and the checkpoint that PostgreSQL would write later."""
    from django.db import connection

    from sae_backend import jobs, runs
    from sae_backend.models import Run

    run = runs.create(sae, dataset, jobs.run_config(dtype=dtype))
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING, started_at=run.created_at)
    for kind, job in (("contexts", jobs.compute_contexts), ("latents", jobs.load_latents)):
        for index in run.shards.filter(kind=kind).order_by("index").values_list("index", flat=True):
            job(run.pk, index)
    jobs.publish(run.pk)
    with connection.cursor() as cursor:
        cursor.execute("checkpoint")
    run.refresh_from_db()
    assert run.state == Run.State.LIVE, run.error
