"""What waits to be done, read from the tables and sent to Celery. Safe to repeat: claims make duplicates harmless."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.utils import timezone

from sae_backend import claims, runs, spool, tasks
from sae_backend.celery import app
from sae_backend.models import RESUMABLE, UNFINISHED, Run, RunShard, SaeImport


def start(run_id: int) -> None:
    """Queue what is open of a run once the current transaction is committed."""
    transaction.on_commit(lambda: enqueue(run_id))


def enqueue(run_id: int) -> None:
    """Send every shard of the run's present stage that is not done, or its publication."""
    run = Run.objects.get(pk=run_id)
    if run.state in (Run.State.QUEUED, Run.State.COMPUTING):
        _shards(run, RunShard.Kind.CONTEXTS)
        continue_after_contexts(run_id)
    elif run.state == Run.State.LOADING:
        _shards(run, RunShard.Kind.LATENTS)
        continue_after_latents(run_id)
    elif run.state == Run.State.SEALED:
        tasks.publish_run.delay(run_id)


def _shards(run: Run, kind: str) -> None:
    for shard in run.shards.filter(kind=kind).exclude(state=RunShard.State.DONE).order_by("index"):
        send(shard)


def send(shard: RunShard) -> None:
    """Queue one shard; whoever takes a message of a shard that is done or claimed drops it."""
    task = tasks.compute_contexts if shard.kind == RunShard.Kind.CONTEXTS else tasks.load_latents
    task.delay(shard.run_id, shard.index)


def continue_after_contexts(run_id: int) -> None:
    """The last shard of contexts sends the shards of latents."""
    if runs.advance(run_id, RunShard.Kind.CONTEXTS, Run.State.LOADING):
        runs.log(run_id, "all contexts are encoded; statistics, examples and weights of the latents follow")
        enqueue(run_id)


def continue_after_latents(run_id: int) -> None:
    """The last shard of latents sends the publication."""
    if runs.advance(run_id, RunShard.Kind.LATENTS, Run.State.SEALED):
        runs.log(run_id, "all latents are loaded; indexes and publication follow")
        enqueue(run_id)


def cancel(run_id: int) -> bool:
    """Stop a run at its owner's wish; True unless it had ended. Its workers notice at their next heartbeat."""
    return runs.cancel(run_id)


def resume(run_id: int) -> bool:
    """Take a failed or cancelled run up where it stopped, with what is still there; True if it was."""
    missing = spool.missing(Run.objects.get(pk=run_id))
    if not runs.reopen(run_id, RESUMABLE, missing):
        return False
    runs.log(run_id, "resumed; what was computed is kept")
    start(run_id)
    return True


def waiting() -> int:
    """Messages in the compute queue that no worker has taken."""
    with app.connection_for_read() as connection:
        name = settings.CELERY_TASK_DEFAULT_QUEUE
        channel: Any = connection.default_channel
        return int(channel.queue_declare(queue=name, passive=False, durable=True).message_count)


def take_over(worker: str) -> int:
    """Send again what a worker that is gone was at: its messages come back only after hours. How many shards."""
    held = claims.release(worker)
    for shard in held:
        send(shard)
    for run in Run.objects.filter(state=Run.State.SEALED):
        tasks.publish_run.delay(run.pk)
    for row in SaeImport.objects.filter(state=SaeImport.State.RUNNING):
        tasks.import_sae.delay(row.pk)
    return len(held)


def sweep(stalled_seconds: float) -> int:
    """Send again what nobody works on: after a worker, Redis or the machine went away. How many runs and imports.

    Only with an empty queue: while messages wait, a silent run may just be behind them.
    """
    if waiting():
        return 0
    cutoff = timezone.now() - timedelta(seconds=stalled_seconds)
    found = 0
    for run in _silent(cutoff):
        # compare and set: of several workers that sweep, one sends
        if Run.objects.filter(pk=run.pk, heartbeat_at=run.heartbeat_at).update(heartbeat_at=timezone.now()):
            runs.log(run.pk, "nobody was working on this run; its open shards are queued again", "warning")
            enqueue(run.pk)
            found += 1
    return found + _imports(cutoff)


def _silent(cutoff: datetime) -> QuerySet[Run]:
    """Unfinished runs without a sign of life since the cutoff and without a claim that another worker keeps alive."""
    alive = timezone.now() - timedelta(seconds=settings.STALLED_SECONDS)
    kept = RunShard.objects.filter(run=OuterRef("pk"), state=RunShard.State.CLAIMED, heartbeat_at__gt=alive)
    silent = Q(heartbeat_at__lt=cutoff) | Q(heartbeat_at=None, created_at__lt=cutoff)
    return Run.objects.filter(silent, ~Exists(kept), state__in=UNFINISHED).order_by("pk")


def _imports(cutoff: datetime) -> int:
    """Imports that were queued or being read when everything stopped; one that is being read is left alone."""
    lost = SaeImport.objects.filter(state__in=[SaeImport.State.QUEUED, SaeImport.State.RUNNING], created_at__lt=cutoff)
    pks = list(lost.order_by("pk").values_list("pk", flat=True))
    for pk in pks:
        tasks.import_sae.delay(pk)
    return len(pks)
