"""Publication: readers see one run whole; what is superseded goes after its grace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, connections, transaction
from django.utils import timezone

from sae_backend import cleaning, locks, runs, store
from sae_backend.models import Run, Sae
from tests.backend import synthetic
from tests.backend.imports import until
from tests.backend.synthetic import a_dataset, a_run, a_sae, published

pytestmark = pytest.mark.django_db(transaction=True)
SMALL = 256


@pytest.fixture
def run() -> Run:
    dataset = a_dataset()
    return a_run(a_sae(dataset, SMALL), dataset)


def test_a_published_run_is_what_its_sae_points_at_and_the_last_one_retires(run: Run) -> None:
    first = published(run.sae, run.dataset)
    second = published(run.sae, run.dataset)
    first.refresh_from_db()
    assert (first.state, second.state) == (Run.State.RETIRED, Run.State.LIVE)
    assert first.retired_at is not None and second.live_at is not None
    assert Sae.objects.get(pk=run.sae_id).current_run_id == second.pk
    assert second.number == first.number + 1
    assert second.summary["counts"]["dead"] == len(range(0, SMALL, 7))
    for each in (first, second):
        assert synthetic.query(f"select count(*) from latent_page where run_id = {each.pk}") == [(SMALL,)]


def test_publishing_twice_changes_nothing(run: Run) -> None:
    once = published(run.sae, run.dataset)
    store.publish(once.pk, {"other": 1})
    again = Run.objects.get(pk=once.pk)
    assert (again.state, again.live_at, again.summary) == (once.state, once.live_at, once.summary)


@pytest.mark.parametrize("state", [Run.State.LOADING, Run.State.CANCELLED, Run.State.RETIRED])
def test_only_a_sealed_run_is_published(run: Run, state: str) -> None:
    Run.objects.filter(pk=run.pk).update(state=state)
    with pytest.raises(store.StoreError, match=f"is {state}; only a sealed run can be published"):
        store.publish(run.pk, {})


@pytest.mark.parametrize("table", ["latent_r", "latent_page_r"])
def test_a_run_that_misses_a_row_is_not_published_and_can_fail(run: Run, table: str) -> None:
    synthetic.load_and_seal(run)
    synthetic.query(f"delete from {table}{run.pk} where index = 100 returning 1")
    with pytest.raises(store.StoreError, match=f"has lost rows in {table}{run.pk}; compute it again"):
        store.publish(run.pk, {})
    assert Sae.objects.get(pk=run.sae_id).current_run_id is None
    runs.fail(run.pk, "it has lost rows")
    run.refresh_from_db()
    assert run.state == Run.State.FAILED


def test_a_row_that_is_there_twice_keeps_a_run_from_being_sealed(run: Run) -> None:
    synthetic.load(run)
    table = f"latent_page_r{run.pk}"
    synthetic.query(f"delete from {table} where index = 100 returning 1")
    synthetic.query(f"insert into {table} select * from {table} where index = 99 returning 1")
    with pytest.raises(Exception, match="could not create unique index"):
        store.seal(run.pk)


class Reader(threading.Thread):
    """Reads the pointer once and then rows of that run, as a page does, until it is told to stop."""

    def __init__(self, sae: Sae) -> None:
        super().__init__(daemon=True)
        self.sae, self.stopped, self.wrong, self.seen = sae, threading.Event(), [], set()
        self.start()

    def run(self) -> None:
        while not self.stopped.is_set():
            self.read()
        connections.close_all()

    def read(self) -> None:
        run_id = Sae.objects.values_list("current_run_id", flat=True).get(pk=self.sae.pk)
        counts = [
            synthetic.query(f"select count(*) from {t} where run_id = %s", run_id) for t in ("latent", "latent_page")
        ]
        self.seen.add(run_id)
        if counts != [[(SMALL,)], [(SMALL,)]]:
            self.wrong.append((run_id, counts))


@contextmanager
def readers(sae: Sae, n: int = 3) -> Iterator[list[Reader]]:
    each = [Reader(sae) for _ in range(n)]
    try:
        yield each
    finally:
        for reader in each:
            reader.stopped.set()
            reader.join()


def test_readers_see_one_run_whole_while_others_take_its_place(run: Run) -> None:
    published(run.sae, run.dataset)
    with readers(run.sae) as threads:
        for _ in range(6):
            later = published(run.sae, run.dataset)
            until(lambda later=later: all(later.pk in reader.seen for reader in threads))
    assert [reader.wrong for reader in threads] == [[], [], []]


def test_publishing_waits_for_nobody_who_reads(run: Run) -> None:
    published(run.sae, run.dataset)
    synthetic.load_and_seal(run)
    reader = connection.copy()
    reader.set_autocommit(False)
    with reader.cursor() as cursor:
        cursor.execute("select (select count(*) from latent), (select count(*) from latent_page)")
        store.publish(run.pk, {})  # its lock_timeout would end it
    reader.rollback()
    reader.close()


def test_a_run_is_dropped_after_its_grace_and_not_before(run: Run) -> None:
    first, second = published(run.sae, run.dataset), published(run.sae, run.dataset)
    assert store.drop_retired() == []
    assert len(synthetic.tables(first)) == 2
    retire_long_ago(first)
    assert store.drop_retired() == [first.pk]
    first.refresh_from_db()
    assert (first.state, synthetic.tables(first)) == (Run.State.DROPPED, [])
    assert synthetic.query(f"select count(*) from latent where run_id = {second.pk}") == [(SMALL,)]
    assert store.drop_retired() == []


def test_superseded_runs_stay_for_their_links_unless_the_site_limits_their_days(run: Run, settings: Any) -> None:
    first, _ = published(run.sae, run.dataset), published(run.sae, run.dataset)
    retire_long_ago(first)
    cleaning.clean()
    assert len(synthetic.tables(first)) == 2
    settings.DROP_RETIRED_AFTER_DAYS = 1 / 24
    cleaning.clean()
    assert synthetic.tables(first) == []


def test_a_pinned_run_is_kept_for_ever(run: Run) -> None:
    first, _ = published(run.sae, run.dataset), published(run.sae, run.dataset)
    retire_long_ago(first)
    Run.objects.filter(pk=first.pk).update(pinned=True)
    assert store.drop_retired() == []
    assert len(synthetic.tables(first)) == 2


def test_tables_whose_removal_was_cut_short_go_the_next_time(run: Run) -> None:
    first, _ = published(run.sae, run.dataset), published(run.sae, run.dataset)
    Run.objects.filter(pk=first.pk).update(state=Run.State.DROPPED)  # and killed before the first table went
    assert store.drop_retired() == []
    assert synthetic.tables(first) == []


def test_tables_of_a_stopped_run_are_kept_until_it_is_no_longer_resumable(run: Run) -> None:
    other = a_run(run.sae, run.dataset)
    for each, days in ((run, 6), (other, 8)):
        runs.cancel(each.pk)
        Run.objects.filter(pk=each.pk).update(stopped_at=timezone.now() - timedelta(days=days))
    cleaning.clean()
    assert (len(synthetic.tables(run)), synthetic.tables(other)) == (2, [])


def test_a_run_that_is_being_resumed_keeps_its_tables(run: Run) -> None:
    runs.cancel(run.pk)
    Run.objects.filter(pk=run.pk).update(stopped_at=timezone.now() - timedelta(days=8))
    other = connection.copy()
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("select 1 from sae_backend_run where id = %s for update", [run.pk])
        assert store.drop_stopped(7) == []
    other.rollback()
    other.close()
    assert store.drop_stopped(7) == [run.pk]


def test_a_detach_that_was_cut_short_is_finished(run: Run) -> None:
    first, _ = published(run.sae, run.dataset), published(run.sae, run.dataset)
    retire_long_ago(first)
    reader = connection.copy()
    reader.set_autocommit(False)
    with reader.cursor() as cursor, ThreadPoolExecutor(1) as other:
        cursor.execute(f"select count(*) from latent where run_id = {first.pk}")
        dropped = other.submit(synthetic.apart, store.drop_retired)
        until(lambda: synthetic.query("select count(*) from pg_inherits where inhdetachpending") == [(1,)])
        cancelled = "select pg_cancel_backend(pid) from pg_stat_activity where query like %s"
        assert synthetic.query(cancelled, "alter table latent detach partition %") == [(True,)]
        with pytest.raises(Exception, match="canceling statement"):
            dropped.result()
    reader.rollback()
    reader.close()
    assert synthetic.query("select count(*) from pg_inherits where inhdetachpending") == [(1,)]
    store.drop_retired()
    assert synthetic.tables(first) == []


def test_labels_can_refer_to_an_sae_while_its_run_is_published(run: Run) -> None:
    """A new row that refers to the SAE waits for no publication."""
    synthetic.load_and_seal(run)
    other = connection.copy()
    with transaction.atomic():
        store.publish(run.pk, {})
        with synthetic.waiting_at_most(60, other), other.cursor() as cursor:
            cursor.execute("select 1 from sae_backend_sae where id = %s for key share", [run.sae_id])
    other.close()


def retire_long_ago(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(retired_at=timezone.now() - timedelta(hours=2))


def test_a_piece_of_work_is_held_by_one_connection_at_a_time() -> None:
    got: list[bool] = []

    def ask() -> None:
        with locks.alone("publish", 1) as mine:
            got.append(mine)
        connections.close_all()

    with locks.alone("publish", 1) as mine:
        assert mine
        in_another(ask)
    in_another(ask)
    assert got == [False, True]


def in_another(work: object) -> None:
    thread = threading.Thread(target=work)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_sealing_aside_keeps_no_connection_of_the_pool(run: Run) -> None:
    synthetic.load(run)
    before = in_use()
    with ThreadPoolExecutor(1) as aside:
        aside.submit(store.seal, run.pk).result()
    assert in_use() == before


def in_use() -> int:
    stats = connection.pool.get_stats()
    return int(stats["pool_size"] - stats["pool_available"])
