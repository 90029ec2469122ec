"""What waits to be done, read from the tables and sent to Celery. Safe to repeat: claims make duplicates harmless."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Now
from kombu.exceptions import OperationalError

from sae_backend import claims, locks, runs, spool, tasks
from sae_backend.celery import app
from sae_backend.models import RESUMABLE, UNFINISHED, Addition, Comparison, Run, RunShard, SaeImport

logger = logging.getLogger(__name__)
BROKER_AWAY = (OperationalError, OSError)
UNDER_WORK = (SaeImport.State.CHECKING, SaeImport.State.RUNNING)
MAX_LOSSES = 2  # of one shard's file: a third time, computing it again is of no use
LOSES = (
    "activations of contexts {places} were written {n} times, and each time the file was gone or was not what had been "
    "written: see that nothing cleans the spool and that its disk is sound, then resume the run"
)


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
        _sent(tasks.publish_run, run_id)


def _shards(run: Run, kind: str) -> None:
    """One message a shard; where Redis does not take the first, the rest are not tried."""
    left = run.shards.filter(kind=kind).exclude(state=RunShard.State.DONE).order_by("index")
    all(send(shard) for shard in left)


def send(shard: RunShard) -> bool:
    """Queue one shard; whoever takes a message of a shard that is done or claimed drops it."""
    task = tasks.compute_contexts if shard.kind == RunShard.Kind.CONTEXTS else tasks.load_latents
    return _sent(task, shard.run_id, shard.index)


def _sent(task: Any, *ids: int) -> bool:
    """Whether Redis took a message. Without it nothing is lost: the database knows the work, and sweep sends it."""
    try:
        task.delay(*ids)
    except BROKER_AWAY as error:
        logger.warning("Redis takes no message, %s%s is sent later: %s", task.name, ids, error)
        return False
    return True


def continue_after_contexts(run_id: int) -> None:
    """The last shard of contexts sends the shards of latents."""
    if runs.advance(run_id, RunShard.Kind.CONTEXTS, Run.State.LOADING):
        took = runs.took(run_id, RunShard.Kind.CONTEXTS)
        runs.log(run_id, f"all contexts are encoded{took}; statistics, examples and weights of the latents follow")
        enqueue(run_id)


def continue_after_latents(run_id: int) -> None:
    """The last shard of latents sends the publication."""
    if runs.advance(run_id, RunShard.Kind.LATENTS, Run.State.SEALED):
        took = runs.took(run_id, RunShard.Kind.LATENTS)
        runs.log(run_id, f"all latents are loaded{took}; indexes and publication follow")
        enqueue(run_id)


def clean() -> None:
    """Have a worker remove what was dropped or deleted, once the current transaction is committed."""
    transaction.on_commit(lambda: _sent(tasks.clean))


def align(sae_id: int) -> None:
    """Have a worker compare the checkpoints of an SAE's series, once the current transaction is committed."""
    transaction.on_commit(lambda: _sent(tasks.align_series, sae_id))


# ---- what people ask for, and what was lost ----------------------------------------------------------


def cancel(run_id: int) -> bool:
    """Stop a run at its owner's wish; True unless it had ended. Its workers notice at their next heartbeat."""
    return runs.cancel(run_id)


def resume(run_id: int) -> bool:
    """Take a failed, cancelled or stalled run up where it stopped, with what is still there; True if it was."""
    run = Run.objects.get(pk=run_id)
    if run.state in UNFINISHED:
        return _send_again(run)
    claims.end_silent_loaders(run_id, 0.0)  # of a run that was stopped nobody is waited for
    if not runs.reopen(run_id, RESUMABLE, spool.missing(run)):
        return False
    runs.log(run_id, "resumed; what was computed is kept")
    start(run_id)
    return True


def _send_again(run: Run) -> bool:
    """Send a stalled run's open shards; False while a worker is at one of them or was lately."""
    for shard in claims.take_silent(run.pk):
        send(shard)
    if not _silent(settings.STALLED_SECONDS).filter(pk=run.pk).exists():
        return False
    claims.touch(run.pk)
    runs.log(run.pk, "resumed; its open shards are queued again")
    start(run.pk)
    return True


def recompute(lost: Sequence[RunShard]) -> None:
    """Have shards of contexts computed again whose files are lost, and all latents, which are made of them."""
    lost = [shard for shard in lost if _is_as_found(shard)]  # of several workers that find it, one is first
    if not lost:
        return
    run_id, places = lost[0].run_id, ", ".join(f"{shard.lo:,} to {shard.hi:,}" for shard in lost)
    if any(shard.losses >= MAX_LOSSES for shard in lost):
        runs.fail(run_id, LOSES.format(n=MAX_LOSSES + 1, places=places))
    elif runs.reopen(run_id, (Run.State.LOADING, Run.State.SEALED), [shard.index for shard in lost]):
        RunShard.objects.filter(pk__in=[shard.pk for shard in lost]).update(losses=F("losses") + 1)
        what = "are gone from the spool, or are not what was written; they are computed again"
        runs.log(run_id, f"activations of contexts {places} {what}", "warning")
        enqueue(run_id)


def _is_as_found(shard: RunShard) -> bool:
    done = RunShard.objects.filter(state=RunShard.State.DONE)
    return done.filter(pk=shard.pk, attempts=shard.attempts).exists()


# ---- work that nobody does ---------------------------------------------------------------------------


def waiting() -> int:
    """Messages in the compute queue that no worker has taken; ConnectionError where Redis does not answer."""
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            name = settings.CELERY_TASK_DEFAULT_QUEUE
            channel: Any = connection.default_channel
            return int(channel.queue_declare(queue=name, passive=False, durable=True).message_count)
    except BROKER_AWAY as error:
        raise ConnectionError(f"Redis does not answer: {error}") from error


def take_over(worker: str) -> int:
    """Send again what a worker that is gone was at: its messages come back only after hours. How many shards."""
    held = claims.release(worker)
    for shard in held:
        send(shard)
    for run in Run.objects.filter(state=Run.State.SEALED):
        _sent(tasks.publish_run, run.pk)
    for row in SaeImport.objects.filter(state__in=UNDER_WORK):
        send_again(row)
    for pk in Addition.objects.filter(state=Addition.State.RUNNING).values_list("pk", flat=True):
        send_addition(pk)
    for pk in Comparison.objects.filter(state=Comparison.State.RUNNING).values_list("pk", flat=True):
        send_comparison(pk)
    return len(held)


def sweep(silent_seconds: float) -> int:
    """Send again what nobody works on: after a worker, Redis or the machine went away. How many of anything.

    Runs and wishes only with an empty queue: while messages wait, a silent one may just be behind them.
    """
    taken = claims.take_silent()
    for shard in taken:
        send(shard)
    if waiting():
        return len(taken)
    found = 0
    for run in _silent(silent_seconds):
        # compare and set: of several workers that sweep, one sends
        if Run.objects.filter(pk=run.pk, heartbeat_at=run.heartbeat_at).update(heartbeat_at=Now()):
            _free_publication(run, silent_seconds)
            runs.log(run.pk, "nobody was working on this run; its open shards are queued again", "warning")
            enqueue(run.pk)
            found += 1
    imports = SaeImport.objects.filter(state__in=[*UNDER_WORK, SaeImport.State.QUEUED])
    additions = Addition.objects.filter(state__in=(Addition.State.QUEUED, Addition.State.RUNNING))
    comparisons = Comparison.objects.filter(state__in=(Comparison.State.QUEUED, Comparison.State.RUNNING)).only("pk")
    found += _lost("import", imports, silent_seconds, send_again)
    found += _lost("comparison", comparisons, silent_seconds, lambda row: send_comparison(row.pk))
    return len(taken) + found + _lost("addition", additions, silent_seconds, lambda row: send_addition(row.pk))


def _free_publication(run: Run, silent_seconds: float) -> None:
    """Take a publication from a worker that hangs in it: one that lives gives signs."""
    if run.state == Run.State.SEALED and silent_seconds >= settings.STALLED_SECONDS:
        locks.end_holder("publish", run.pk)


def _silent(seconds: float) -> QuerySet[Run]:
    """Unfinished runs without a sign of life for so long and without a claim, which a worker keeps alive."""
    cutoff = Now() - timedelta(seconds=seconds)
    kept = RunShard.objects.filter(run=OuterRef("pk"), state=RunShard.State.CLAIMED)
    silent = Q(heartbeat_at__lte=cutoff) | Q(heartbeat_at=None, created_at__lte=cutoff)
    return Run.objects.filter(silent, ~Exists(kept), state__in=UNFINISHED).order_by("pk")


def send_check(import_id: int) -> bool:
    """Queue the reading of what has arrived of an import."""
    return _sent(tasks.check_import, import_id)


def send_import(import_id: int) -> bool:
    return _sent(tasks.import_sae, import_id)


def send_again(row: SaeImport) -> bool:
    """Queue whatever an import waits for; whoever finds another at it drops the message."""
    return (send_check if row.state == SaeImport.State.CHECKING else send_import)(row.pk)


def send_addition(addition_id: int) -> bool:
    """Queue a language model or dataset to be added."""
    return _sent(tasks.add_source, addition_id)


def send_comparison(comparison_id: int) -> bool:
    """Queue two SAEs to be compared."""
    return _sent(tasks.compare_saes, comparison_id)


def _lost(lock: str, open_rows: QuerySet[Any], seconds: float, again: Callable[[Any], bool]) -> int:
    """Send again what nobody gives a sign of; what a worker hangs in is taken from it."""
    cutoff = Now() - timedelta(seconds=seconds)
    silent = Q(heartbeat_at__lte=cutoff) | Q(heartbeat_at=None, created_at__lte=cutoff)
    lost = list(open_rows.filter(silent).order_by("pk"))
    for row in lost:
        if seconds >= settings.STALLED_SECONDS:
            locks.end_holder(lock, row.pk)
        again(row)
    return len(lost)
