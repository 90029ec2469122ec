"""Every write of computed results: contexts, latents, seal, publish, drop. Each step can be killed and repeated.

A run loads stand-alone tables by binary COPY, one transaction a shard; `seal` indexes them once every shard is done;
`publish` attaches them and moves the SAE's pointer in one short transaction. Readers see a run whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from django.db import connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from sae_backend import packed_columns, packing, rows, summary
from sae_backend.core.contexts import Contexts
from sae_backend.core.results import LatentShard
from sae_backend.models import RESUMABLE, Dataset, LogLine, Run, RunShard, Sae
from sae_backend.rows import STATISTICS

# what a table sorts by has an index of its own: (column, index) where the latent fired
SORTABLE = [c for c in STATISTICS if c not in ("status", "firings", "nearest_live")]
SIDE_BY_SIDE = 4  # indexes built at once
_LIKE = "like {} including defaults including constraints including storage including compression"


class StoreError(Exception):
    """A step that the state of the run does not allow, with a sentence that says what to do."""


class NotSealed(StoreError):
    """A run that somebody stopped, or took up again, before it was published."""


def tables(run_id: int) -> tuple[str, str]:
    return f"latent_r{run_id}", f"latent_page_r{run_id}"


# ---- datasets ----------------------------------------------------------------------------------


def write_contexts(dataset: Dataset, blocks: Iterable[tuple[Contexts, Iterable[str]]]) -> None:
    """Store a tokenized dataset, block by block with its contexts' texts, in one transaction; repeating it replaces
    what is there."""
    table, digest = f"context_d{dataset.pk}", hashlib.sha256()
    dtype = packing.token_dtype(dataset.lm.d_vocab)
    n_contexts = n_documents = 0
    with transaction.atomic():
        with connection.cursor() as cursor:
            # stand-alone until it is full: a partition being created locks every reader of the parent out
            cursor.execute(f"create table {table}_new ({_LIKE.format('context')}, check (dataset_id = {dataset.pk}))")
            cursor.execute("delete from document where dataset_id = %s", [dataset.pk])
        for block, texts in blocks:
            digest.update(block.tokens.astype("<u4").tobytes())
            rows.documents(dataset.pk, n_documents, block.names)
            rows.contexts(f"{table}_new", dataset.pk, n_contexts, block, dtype, texts)
            n_contexts, n_documents = n_contexts + len(block.tokens), n_documents + len(block.names)
        _attach_contexts(table, dataset.pk)
        counted = {"n_contexts": n_contexts, "n_tokens": n_contexts * dataset.ctx_len, "n_documents": n_documents}
        Dataset.objects.filter(pk=dataset.pk).update(sha256=digest.hexdigest(), ready=True, **counted)


def drop_contexts(dataset_id: int) -> None:
    """Delete the contexts and documents of a dataset that no run needs; needs autocommit."""
    _detach_and_drop("context", f"context_d{dataset_id}")
    with connection.cursor() as cursor:
        cursor.execute("delete from document where dataset_id = %s", [dataset_id])


def _attach_contexts(table: str, dataset_id: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"create index on {table}_new using gin (text gin_trgm_ops)")
        cursor.execute(f"drop table if exists {table}")
        cursor.execute(f"alter table {table}_new rename to {table}")
        cursor.execute(f"alter table context attach partition {table} for values in ({dataset_id})")


def read_contexts(dataset: Dataset, lo: int, hi: int) -> npt.NDArray[np.uint32]:
    """Token ids [hi - lo, ctx_len] of contexts lo ≤ c < hi."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select tokens from context where dataset_id = %s and index >= %s and index < %s order by index",
            [dataset.pk, lo, hi],
        )
        blob = b"".join(bytes(row[0]) for row in cursor.fetchall())
    ids = np.frombuffer(blob, packing.token_dtype(dataset.lm.d_vocab)).astype(np.uint32)
    return ids.reshape(-1, dataset.ctx_len)


# ---- latents ---------------------------------------------------------------------------------------


def create_tables(run_id: int) -> None:
    """Empty stand-alone tables for a run's latents, in place of any that are there."""
    drop_tables(run_id)
    with connection.cursor() as cursor:
        for parent, table in zip(("latent", "latent_page"), tables(run_id), strict=True):
            like = _LIKE.format(parent)
            cursor.execute(f"create table {table} ({like}, check (run_id = {run_id})) with (autovacuum_enabled = off)")


def drop_tables(run_id: int) -> None:
    """Drop the tables of a run that was never published."""
    with connection.cursor() as cursor:
        for table in tables(run_id):
            cursor.execute(f"drop table if exists {table}")


def holds(run: Run) -> bool:
    """Whether the run's tables have the rows of every shard of latents that is done, and no others."""
    done = run.shards.filter(kind=RunShard.Kind.LATENTS, state=RunShard.State.DONE)
    expected = sum(hi - lo for lo, hi in done.values_list("lo", "hi"))
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_class where relname = any(%s)", [list(tables(run.pk))])
        if cursor.fetchone() != (2,):
            return False
        for table in tables(run.pk):
            cursor.execute(f"select count(*) from {table}")
            if cursor.fetchone() != (expected,):
                return False
    return True


def load_latents(shard: RunShard, pieces: Iterable[LatentShard]) -> bool:
    """COPY a shard's rows and mark it done, in one transaction; False, and no row, when claim or run is gone.

    PostgreSQL takes one piece's rows in while the next are computed.
    """
    latent, page = tables(shard.run_id)
    _note_backend(shard)
    with transaction.atomic():
        for piece in pieces:
            rows.latents(latent, shard.run_id, piece)
            rows.pages(page, shard.run_id, piece)
        if _finish(shard):
            return True
        transaction.set_rollback(True)
    return False


def _finish(shard: RunShard) -> bool:
    """Compare and set after the COPY: during it the claim's heartbeats go on, and nobody waits for its row."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            update sae_backend_runshard s
            set state = 'done', done_at = clock_timestamp(), progress = hi - lo, backend_pid = null, deaths = 0
            from sae_backend_run r
            where s.id = %s and s.worker = %s and s.attempts = %s and s.state = 'claimed'
              and r.id = s.run_id and r.state = 'loading'
            """,
            [shard.pk, shard.worker, shard.attempts],
        )
        return cursor.rowcount == 1


def _note_backend(shard: RunShard) -> None:
    """Record which connection, this thread's, is about to COPY, so that a hung one can be terminated."""
    with connection.cursor() as cursor:
        cursor.execute(
            "update sae_backend_runshard set backend_pid = pg_backend_pid(), heartbeat_at = clock_timestamp()"
            " where id = %s and worker = %s and attempts = %s and state = 'claimed'",
            [shard.pk, shard.worker, shard.attempts],
        )


# ---- the end of a run --------------------------------------------------------------------------------


def seal(run_id: int) -> None:
    """Index a fully loaded run; outside a transaction, on tables nobody reads yet."""
    latent, page = tables(run_id)
    _side_by_side([_END_BUILDERS.format(latent, page)])
    _side_by_side([f"create unique index if not exists {t}_pk on {t} (run_id, index)" for t in (page, latent)])
    live = (f"{latent}_{c} on {latent} ({c}, index) where status > 0" for c in SORTABLE)
    of_latents = [*live, f"{latent}_dead on {latent} (index) where status = 0"]
    _side_by_side([f"create index if not exists {index}" for index in of_latents])
    # rows are found by a key or in the order of an index, however the statistics are spread: what the planner must know
    # is that all rows are of one run, and how many of them are dead
    _side_by_side([f"vacuum (freeze) {page}", f"vacuum (freeze, analyze) {latent} (run_id, index, status)"])


# What PostgreSQL still does for a publisher that is gone: of two that build the same index one fails.
_END_BUILDERS = """
    select pg_terminate_backend(l.pid, 60000) from pg_locks l join pg_stat_activity a on a.pid = l.pid
    where l.database = (select oid from pg_database where datname = current_database())
      and l.relation = any(array['{}', '{}']::regclass[]) and l.mode in ('ShareLock', 'ShareUpdateExclusiveLock')
      and l.pid <> pg_backend_pid() and a.usename = current_user and a.backend_type = 'client backend'
"""


def _side_by_side(statements: Sequence[str]) -> None:
    """Each on a connection, and so on a core, of its own."""

    def execute(statement: str) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        list(threads.map(execute, statements))


def publish(run_id: int, figures: dict[str, Any], told: Sequence[str] = ()) -> None:
    """Attach a sealed run's tables and point its SAE at it; the run before is retired, or it itself if it is aside.

    The run's log is told so in the same moment, whatever becomes of its publisher then.
    """
    latent, _ = tables(run_id)
    sealed = Run.objects.select_related("sae").filter(pk=run_id, state=Run.State.SEALED).first()
    if sealed is not None:  # its rows no longer change
        figures = {**figures, **summary.from_tables(latent, SORTABLE)}
        packed_columns.write(run_id, latent, SORTABLE, sealed.sae.d_sae)
    with _to_publish(run_id) as run:
        if run is not None:
            _check_complete(run_id, run.sae.d_sae)
            _attach(run_id)
    # Whoever sees the pointer must find the tables: PostgreSQL tells others of a new partition only after they can see
    # what else its transaction did.
    with _to_publish(run_id) as run:
        if run is not None:
            _point_at(run, figures)
            for line in told:
                LogLine.objects.create(run=run, text=line)


@contextmanager
def _to_publish(run_id: int) -> Iterator[Run | None]:
    """A sealed run, and its SAE, in a transaction that nobody else changes them in; None where it is published."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("set local lock_timeout = '10s'")
        run = Run.objects.select_for_update().get(pk=run_id)
        if run.state not in (Run.State.SEALED, Run.State.LIVE):
            raise NotSealed(f"run {run_id} is {run.state}; only a sealed run can be published")
        run.sae = Sae.objects.select_for_update(no_key=True).get(pk=run.sae_id)  # labels can still be written
        yield run if run.state == Run.State.SEALED else None


def _point_at(run: Run, figures: dict[str, Any]) -> None:
    before = run.sae.current_run_id
    Run.objects.filter(pk=run.pk).update(state=Run.State.LIVE, live_at=timezone.now(), summary=figures)
    if run.aside and before:  # pages that are there are not its to replace
        retired = {"state": Run.State.RETIRED, "retired_at": timezone.now(), "pinned": True}
        Run.objects.filter(pk=run.pk).update(**retired)
        return
    if before and before != run.pk:
        Run.objects.filter(pk=before).update(state=Run.State.RETIRED, retired_at=timezone.now())
    Sae.objects.filter(pk=run.sae_id).update(current_run=run)


def _check_complete(run_id: int, d_sae: int) -> None:
    """Every latent once: the unique index that _attach needs rules out doubles."""
    with connection.cursor() as cursor:
        for table in tables(run_id):
            cursor.execute(f"select count(*), min(index), max(index) from {table}")
            if cursor.fetchone() != (d_sae, 0, d_sae - 1):
                raise StoreError(f"run {run_id} has lost rows in {table}; compute it again")


def _attach(run_id: int) -> None:
    with connection.cursor() as cursor:
        for parent, table in zip(("latent", "latent_page"), tables(run_id), strict=True):
            cursor.execute("select relispartition from pg_class where oid = %s::regclass", [table])
            if cursor.fetchone() == (True,):  # by one who was killed before the pointer moved
                continue
            cursor.execute(f"alter table {table} reset (autovacuum_enabled)")
            cursor.execute(f"alter table {table} alter run_id set not null, alter index set not null")
            cursor.execute(f"alter table {table} add constraint {table}_pk primary key using index {table}_pk")
            cursor.execute(f"alter table {parent} attach partition {table} for values in ({run_id})")


def drop_retired(grace_seconds: float = 3600.0) -> list[int]:
    """Drop retired runs past their grace, unless pinned or shared; which runs. Needs autocommit."""
    cutoff = timezone.now() - timedelta(seconds=grace_seconds)
    old = Run.objects.filter(state=Run.State.RETIRED, retired_at__lt=cutoff, pinned=False, shared_at=None)
    dropped = [pk for pk in old.values_list("pk", flat=True) if old.filter(pk=pk).update(state=Run.State.DROPPED)]
    drop_leftovers()
    return dropped


def drop_leftovers() -> None:
    """Drop the tables of runs that nobody reads any more; needs autocommit."""
    for run_id in _with_tables(Run.objects.filter(state=Run.State.DROPPED)):
        drop_whatever(run_id)


def drop_whatever(run_id: int) -> None:
    """Drop the tables of a run, published or not; needs autocommit."""
    packed_columns.drop(run_id)
    for parent, table in zip(("latent", "latent_page"), tables(run_id), strict=True):
        _detach_and_drop(parent, table)


def drop_stopped(days: float) -> list[int]:
    """Drop the tables of runs that failed or were cancelled so many days ago, and are not being resumed; which runs."""
    recent = Run.objects.filter(stopped_at__gte=timezone.now() - timedelta(days=days))
    stopped = Run.objects.filter(state__in=RESUMABLE).exclude(pk__in=recent)
    return [run_id for run_id in _with_tables(stopped) if _drop_if_still(stopped, run_id)]


def _drop_if_still(stopped: QuerySet[Run], run_id: int) -> bool:
    with transaction.atomic():
        still = stopped.select_for_update(skip_locked=True).filter(pk=run_id).exists()
        if still:
            drop_tables(run_id)
    return still


def _with_tables(runs: QuerySet[Run]) -> list[int]:
    """Those of these runs that have tables."""
    with connection.cursor() as cursor:
        cursor.execute("select relname from pg_class where starts_with(relname, 'latent_')")
        there = {row[0] for row in cursor.fetchall()}
    return [pk for pk in runs.order_by("pk").values_list("pk", flat=True) if there.intersection(tables(pk))]


def _detach_and_drop(parent: str, table: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "select i.inhdetachpending from pg_inherits i join pg_class c on c.oid = i.inhrelid where c.relname = %s",
            [table],
        )
        row = cursor.fetchone()
        if row is not None:  # finish what a killed process began, or detach without blocking readers
            how = "finalize" if row[0] else "concurrently"
            cursor.execute(f"alter table {parent} detach partition {table} {how}")
        cursor.execute(f"drop table if exists {table}")
