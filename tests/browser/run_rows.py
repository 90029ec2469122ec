"""Runs whose shards were done, or are held, at moments that a test chooses."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from sae_backend.models import Run, RunShard, Sae
from tests.browser import sae_rows

CONTEXTS, LATENTS = RunShard.Kind.CONTEXTS, RunShard.Kind.LATENTS


def ago(seconds: float) -> datetime:
    return timezone.now() - timedelta(seconds=seconds)


def shard_done(run: Run, kind: str, index: int, begun: float, done: float, worker: str = "gpu-0") -> None:
    """A shard that a worker took and finished so many seconds ago."""
    _shard(run, kind, index, state="done", worker=worker, claimed_at=ago(begun), done_at=ago(done), attempts=1)


def shard_held(
    run: Run, kind: str, index: int, begun: float, progress: int, worker: str = "gpu-0", sign: float = 0, nth: int = 1
) -> None:
    """A shard that a worker took so many seconds ago, at the nth attempt; its last sign is `sign` seconds old."""
    times = {"claimed_at": ago(begun), "heartbeat_at": ago(sign), "attempts": nth}
    _shard(run, kind, index, state="claimed", worker=worker, progress=progress, **times)


def _shard(run: Run, kind: str, index: int, **fields: Any) -> None:
    assert run.shards.filter(kind=kind, index=index).update(**fields) == 1


def computing(sae: Sae | None = None, begun: float = 60, sign: float = 0) -> Run:
    """A run in its first stage."""
    run = sae_rows.new_run(sae or sae_rows.new_sae())
    fields = {"created_at": ago(begun + 5), "started_at": ago(begun), "heartbeat_at": ago(sign)}
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING, **fields)
    run.refresh_from_db()
    return run


def published(name: str = "earlier", token: float = 0.5, latent: float = 0.1, publish: float = 6, **fields: Any) -> Run:
    """A live run a day old whose one worker took so many seconds a token and a latent, and to publish."""
    stats = sae_rows.publish(sae_rows.new_sae(name, slug=name, **fields))
    run, at = stats.run, ago(86400)
    for kind, cost in ((CONTEXTS, token * sae_rows.CTX_LEN), (LATENTS, latent)):
        for shard in run.shards.filter(kind=kind):
            end = at + timedelta(seconds=cost * (shard.hi - shard.lo))
            RunShard.objects.filter(pk=shard.pk).update(claimed_at=at, done_at=end)
    Run.objects.filter(pk=run.pk).update(loaded_at=at, live_at=at + timedelta(seconds=publish))
    run.refresh_from_db()
    return run
