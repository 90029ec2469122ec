"""Who computes which shard: claims by compare-and-set, kept alive by heartbeats, taken back from who falls silent.

A claim is its shard, worker and number (`attempts`): whatever a worker brings under a claim that is no longer the
shard's present one is refused, however late it wakes up. All times are the database's: workers' clocks may differ.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

from django.conf import settings
from django.db import connection
from django.db.models import Exists, F, OuterRef, QuerySet
from django.db.models.functions import Now

from sae_backend import runs
from sae_backend.models import UNFINISHED, Run, RunShard
from sae_backend.pulse import stopping

TURN_SECONDS = 20.0  # that a worker goes on with one run's contexts before it looks for other messages
WANTED = {
    RunShard.Kind.CONTEXTS: (Run.State.QUEUED, Run.State.COMPUTING),
    RunShard.Kind.LATENTS: (Run.State.LOADING,),
}


def claim(run_id: int, kind: str, index: int, worker: str) -> RunShard | None:
    """Take a shard by compare-and-set, or None when another has it, it is done, or the run does not want it.

    A worker takes up one message at a time: a claim in its own name is one that it had to leave, and may have again.
    """
    end_silent_loaders(run_id)
    with connection.cursor() as cursor:
        cursor.execute(
            """
            update sae_backend_runshard s
            set state = 'claimed', worker = %(worker)s, claimed_at = now(), heartbeat_at = now(), progress = 0,
                attempts = s.attempts + 1, backend_pid = null,
                deaths = s.deaths + (s.state = 'claimed' and s.worker <> %(worker)s)::int
            from sae_backend_run r, sae_backend_runshard before
            where s.run_id = %(run)s and s.kind = %(kind)s and s.index = %(index)s and r.id = s.run_id
              and before.id = s.id and r.state = any(%(wanted)s) and (s.state = 'todo' or s.state = 'claimed' and (
                s.worker = %(worker)s or s.heartbeat_at < now() - make_interval(secs => %(silent)s)))
            returning s.id, before.state = 'claimed' and before.worker <> %(worker)s, before.worker
            """,
            {
                "worker": worker, "run": run_id, "kind": kind, "index": index,
                "wanted": list(WANTED[RunShard.Kind(kind)]), "silent": settings.STALLED_SECONDS,
            },
        )  # fmt: skip
        row = cursor.fetchone()
    if row is None:
        return None
    if kind == RunShard.Kind.CONTEXTS:
        _begin(run_id, worker)
    pk, from_another, other = row
    shard = RunShard.objects.select_related("run").get(pk=pk)
    if from_another:
        runs.log(run_id, f"{other} fell silent while it computed {_what(shard)}: {worker} has them now", "warning")
    return shard


def one_after_another(run_id: int, kind: str, index: int, worker: str) -> Iterator[RunShard]:
    """Claim a shard and, for a while, those of its run and kind that nobody has; other work waits no longer."""
    until = time.monotonic() + TURN_SECONDS
    following: int | None = index
    while following is not None:
        shard = claim(run_id, kind, following, worker)
        if shard is not None:
            yield shard
        going_on = time.monotonic() < until and not stopping.is_set()
        following = _first_free(run_id, kind) if going_on else None


def _first_free(run_id: int, kind: str) -> int | None:
    wanted = RunShard.objects.filter(run=run_id, kind=kind, run__state__in=WANTED[RunShard.Kind(kind)])
    free = wanted.filter(state=RunShard.State.TODO).order_by("deaths", "index")  # what ends workers waits for the rest
    return free.values_list("index", flat=True).first()


def _begin(run_id: int, worker: str) -> None:
    """The first claim takes a run out of the queue."""
    queued = Run.objects.filter(pk=run_id, state=Run.State.QUEUED)
    if queued.update(state=Run.State.COMPUTING, started_at=Now(), heartbeat_at=Now()):
        runs.log(run_id, f"begun by {worker}")


def end_silent_loaders(run_id: int, silent_seconds: float | None = None) -> None:
    """End the connections of silent claims: hung inside COPY they lock their table, and no timeout ends them."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select pg_terminate_backend(a.pid)
            from sae_backend_runshard s join pg_stat_activity a on a.pid = s.backend_pid
            where s.run_id = %s and s.state = 'claimed' and s.heartbeat_at < now() - make_interval(secs => %s)
              and a.backend_start < s.heartbeat_at and a.pid <> pg_backend_pid()
            """,
            [run_id, settings.STALLED_SECONDS if silent_seconds is None else silent_seconds],
        )


# ---- while a claim lasts -----------------------------------------------------------------------------


def _present(shard: RunShard) -> QuerySet[RunShard]:
    """The shard while this claim of it stands. No join: an update must check the row's newest version."""
    claim = {"worker": shard.worker, "attempts": shard.attempts, "state": RunShard.State.CLAIMED}
    return RunShard.objects.filter(pk=shard.pk, **claim)


def _wanted(shard: RunShard) -> Exists:
    states = WANTED[RunShard.Kind(shard.kind)]
    return Exists(Run.objects.filter(pk=OuterRef("run_id"), state__in=states))


def heartbeat(shard: RunShard, progress: int) -> bool:
    """Say that the claim lives; False when it is no longer this worker's, or the run was stopped."""
    if not _present(shard).filter(_wanted(shard)).update(heartbeat_at=Now(), progress=progress):
        return False
    return touch(shard.run_id)


def touch(run_id: int) -> bool:
    """Say that the run is worked on, and how many of its tokens are done; False when there is no such run."""
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
        return cursor.rowcount == 1


def finish_contexts(shard: RunShard, checksum: int) -> bool:
    """Mark a shard of contexts done once its file is in the spool; False when the claim was lost."""
    done = {"state": RunShard.State.DONE, "done_at": Now(), "checksum": checksum, "deaths": 0}
    return bool(_present(shard).filter(_wanted(shard)).update(**done))


# ---- the other ends of a claim -----------------------------------------------------------------------


def give_back(shard: RunShard) -> bool:
    """Leave a shard to whoever takes it next, as a worker does that goes on living."""
    return bool(_present(shard).update(state=RunShard.State.TODO, progress=0))


def release(worker: str) -> list[RunShard]:
    """Take back every claim of a worker that is known to have ended; which they were."""
    return _take_back(RunShard.objects.filter(worker=worker), "ended")


def take_silent(run_id: int | None = None) -> list[RunShard]:
    """Take back the claims, of one run or all, that gave no sign for settings.STALLED_SECONDS; which they were."""
    silent = RunShard.objects.filter(heartbeat_at__lt=Now() - timedelta(seconds=settings.STALLED_SECONDS))
    if run_id is not None:
        silent = silent.filter(run=run_id)
    return _take_back(silent, "fell silent")


def _take_back(shards: QuerySet[RunShard], how: str) -> list[RunShard]:
    held = shards.filter(state=RunShard.State.CLAIMED, run__state__in=UNFINISHED).order_by("run", "kind", "index")
    return [shard for shard in held if _taken_back(shard, how)]


def _taken_back(shard: RunShard, how: str) -> bool:
    end_silent_loaders(shard.run_id)
    unmoved = _present(shard).filter(heartbeat_at=shard.heartbeat_at)  # of several that look, one takes it
    if not unmoved.update(state=RunShard.State.TODO, progress=0, deaths=F("deaths") + 1):
        return False
    what = f"{shard.worker} {how} while it computed {_what(shard)}: they are queued again"
    runs.log(shard.run_id, what, "warning")
    return True


def _what(shard: RunShard) -> str:
    return f"{shard.kind} {shard.lo:,} to {shard.hi:,}"
