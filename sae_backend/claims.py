"""Who computes which shard: claims by compare-and-set, kept alive by heartbeats, taken over when they fall silent."""

from __future__ import annotations

from django.conf import settings
from django.db import connection
from django.utils import timezone

from sae_backend import runs
from sae_backend.models import Run, RunShard


def claim(run_id: int, kind: str, index: int, worker: str) -> RunShard | None:
    """Take a shard by compare-and-set, or None when another has it, it is done, or the run does not want it."""
    contexts = kind == RunShard.Kind.CONTEXTS
    wanted = [Run.State.QUEUED, Run.State.COMPUTING] if contexts else [Run.State.LOADING]
    _free_hung_loader(run_id, kind, index)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            update sae_backend_runshard s
            set state = 'claimed', worker = %s, claimed_at = now(), heartbeat_at = now(), attempts = attempts + 1, progress = 0,
                backend_pid = null
            from sae_backend_run r
            where s.run_id = %s and s.kind = %s and s.index = %s and r.id = s.run_id and r.state = any(%s)
              and (s.state = 'todo' or s.state = 'claimed' and s.heartbeat_at < now() - make_interval(secs => %s))
            returning s.id
            """,
            [worker, run_id, kind, index, wanted, settings.STALLED_SECONDS],
        )
        row = cursor.fetchone()
    if row is not None and contexts:
        _begin(run_id)
    return None if row is None else RunShard.objects.select_related("run").get(pk=row[0])


def _begin(run_id: int) -> None:
    """The first claim takes a run out of the queue."""
    now = timezone.now()
    queued = Run.objects.filter(pk=run_id, state=Run.State.QUEUED)
    if queued.update(state=Run.State.COMPUTING, started_at=now, heartbeat_at=now):
        runs.log(run_id, "begun")


def _free_hung_loader(run_id: int, kind: str, index: int) -> None:
    """End the connection of a stalled claim: inside COPY it holds the shard's row, and no timeout ends it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select pg_terminate_backend(a.pid)
            from sae_backend_runshard s join pg_stat_activity a on a.pid = s.backend_pid
            where s.run_id = %s and s.kind = %s and s.index = %s and s.state = 'claimed'
              and s.heartbeat_at < now() - make_interval(secs => %s)
              and a.backend_start < s.heartbeat_at and a.pid <> pg_backend_pid()
            """,
            [run_id, kind, index, settings.STALLED_SECONDS],
        )


def heartbeat(shard_id: int, worker: str, progress: int) -> bool:
    """Say that the claim lives; False when it is no longer this worker's."""
    alive = RunShard.objects.filter(pk=shard_id, worker=worker, state=RunShard.State.CLAIMED)
    if not alive.update(heartbeat_at=timezone.now(), progress=progress):
        return False
    touch(RunShard.objects.values_list("run_id", flat=True).get(pk=shard_id))
    return True


def touch(run_id: int) -> None:
    """Say that the run is worked on, and how many of its tokens are done."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            update sae_backend_run r set heartbeat_at = now(), tokens_done = (
                select coalesce(sum(case when s.state = 'done' then (s.hi - s.lo) * d.ctx_len else s.progress end), 0)
                from sae_backend_runshard s, sae_backend_dataset d
                where s.run_id = r.id and s.kind = 'contexts' and d.id = r.dataset_id)
            where r.id = %s
            """,
            [run_id],
        )


def release(worker: str) -> list[RunShard]:
    """Give back every claim of a worker that is known to be gone; which they were."""
    held = list(RunShard.objects.filter(worker=worker, state=RunShard.State.CLAIMED))
    mine = RunShard.objects.filter(pk__in=[s.pk for s in held], worker=worker, state=RunShard.State.CLAIMED)
    mine.update(state=RunShard.State.TODO)
    return held


def finish_contexts(shard: RunShard) -> bool:
    """Mark a shard of contexts done once its file is in the spool; False when the claim was lost."""
    mine = RunShard.objects.filter(pk=shard.pk, worker=shard.worker, state=RunShard.State.CLAIMED)
    return bool(mine.update(state=RunShard.State.DONE, done_at=timezone.now()))
