"""Loaders and publishers that are killed, or hang: nothing is lost, doubled or half shown."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
from django.conf import settings
from django.db import Error, connection, transaction

from sae_backend import claims, runs, store
from sae_backend.models import Run, RunShard, Sae
from tests.backend import synthetic
from tests.backend.nursery import Nursery, called
from tests.backend.synthetic import D_SAE, LATENTS, SIZE, a_dataset, a_run, a_sae

pytestmark = pytest.mark.django_db(transaction=True)
KILLS = 24


@pytest.fixture
def nursery(site_environment: dict[str, str]) -> Iterator[Nursery]:
    nursery = Nursery(site_environment)
    yield nursery
    nursery.close()


@pytest.fixture
def run(site_environment: dict[str, str]) -> Run:
    dataset = a_dataset()
    return a_run(a_sae(dataset), dataset)


def wait_for(condition: Callable[[], object], seconds: float = 240.0) -> None:  # a full machine is slow
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)


def done(run: Run) -> int:
    return run.shards.filter(kind=LATENTS, state=RunShard.State.DONE).count()


def consistent(run: Run) -> bool:
    """Whether exactly the rows of the shards that say done are there, in both tables."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("set transaction isolation level repeatable read")
        n = done(run) * SIZE
        return all(
            synthetic.query(f"select count(*), count(distinct index) from {table}") == [(n, n)]
            for table in synthetic.tables(run)
        )


def test_killed_loaders_lose_and_double_nothing(nursery: Nursery, run: Run) -> None:
    undisturbed = a_run(run.sae, run.dataset)
    synthetic.load(undisturbed)
    moments = random.Random(0)
    killed = 0
    while killed < KILLS:
        if done(run) > 12:  # begin afresh, with other shards half loaded
            runs.cancel(run.pk)
            run = a_run(run.sae, run.dataset)
        child = nursery.born("load", run.pk, "loader", True)
        time.sleep(moments.uniform(0.01, 0.4))
        killed += nursery.kill(child)
        assert consistent(run)
        wait_for(lambda child=child: gone(child))
        claims.release("loader")
    assert nursery.ended(nursery.born("load", run.pk, "loader", False)) == 0
    assert consistent(run) and done(run) == D_SAE // SIZE
    assert synthetic.digest(run) == synthetic.digest(undisturbed)


def test_three_loaders_of_which_two_are_killed_share_a_run(nursery: Nursery, run: Run) -> None:
    undisturbed = a_run(run.sae, run.dataset)
    synthetic.load(undisturbed)
    while True:
        children = [nursery.born("load", run.pk, f"loader-{i}", True) for i in range(3)]
        wait_for(lambda run=run: done(run) >= 3)
        if all([nursery.kill(child) for child in children[:2]]):
            break
        nursery.kill(children[2])  # we were late: they were done before
        run = a_run(run.sae, run.dataset)
    assert consistent(run)
    for i in range(2):
        wait_for(lambda i=i: gone(children[i]))
        claims.release(f"loader-{i}")
    assert nursery.ended(children[2]) == 0
    synthetic.load(run, "last")
    assert synthetic.digest(run) == synthetic.digest(undisturbed)


def test_a_loader_that_hangs_inside_copy_is_freed_when_its_claim_runs_out(nursery: Nursery, run: Run) -> None:
    child = nursery.born("load", run.pk, "hung", True)
    wait_for(lambda: stopped_inside_copy(run, child))
    shard = run.shards.get(state=RunShard.State.CLAIMED)
    with synthetic.waiting_at_most(60), stalled_after(0.1):
        time.sleep(0.2)
        taken = claims.claim(run.pk, LATENTS, shard.index, "second")
    assert taken is not None and taken.worker == "second"
    assert store.load_latents(taken, [synthetic.shard(taken.lo, taken.hi)])
    os.kill(child, signal.SIGCONT)
    assert nursery.ended(child) != 0  # its connection is gone
    assert consistent(run)


def test_a_connection_that_has_the_number_of_a_dead_loader_is_left_alone(run: Run) -> None:
    """PostgreSQL gives process numbers out again; this one began after the loader's last sign of life."""
    shard = claims.claim(run.pk, LATENTS, 0, "dead")
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        pid = cursor.fetchone()[0]
        silent = "now() - interval '1 hour'"
        synthetic.query(
            f"update sae_backend_runshard set backend_pid = %s, heartbeat_at = {silent} where id = %s returning 1",
            pid, shard.pk,  # type: ignore[union-attr]
        )  # fmt: skip
        assert claims.claim(run.pk, LATENTS, 0, "second") is not None
        cursor.execute("select 1")
    other.close()


def gone(child: int) -> bool:
    """Whether PostgreSQL has noticed a child's end: what it said last may be under way until then."""
    return not synthetic.query("select 1 from pg_stat_activity where application_name = %s", called(child))


def stopped_inside_copy(run: Run, child: int) -> bool:
    os.kill(child, signal.SIGSTOP)
    if copying(run):
        return True
    os.kill(child, signal.SIGCONT)
    return False


def copying(run: Run) -> bool:
    active = "select 1 from pg_stat_activity where state = 'active' and query like %s"
    return bool(synthetic.query(active, f"copy latent_page_r{run.pk} %"))


@contextmanager
def stalled_after(seconds: float) -> Iterator[None]:
    before = settings.STALLED_SECONDS
    settings.STALLED_SECONDS = seconds
    try:
        yield
    finally:
        settings.STALLED_SECONDS = before


def pointer_and_data_agree(sae: Sae, run: Run) -> bool:
    with transaction.atomic(), connection.cursor() as cursor:  # a dead client's COMMIT may still be under way
        cursor.execute("set transaction isolation level repeatable read")
        run.refresh_from_db()
        sae.refresh_from_db()
    attached = synthetic.query(
        "select count(*) from pg_inherits where inhrelid = any(%s::regclass[])", synthetic.tables(run)
    )
    if run.state == Run.State.LIVE:
        return sae.current_run_id == run.pk and attached == [(2,)]
    return sae.current_run_id != run.pk and attached in ([(0,)], [(2,)])


def test_a_publisher_killed_at_any_moment_has_published_or_not_and_a_second_finishes(
    nursery: Nursery, run: Run
) -> None:
    synthetic.load_and_seal(run)
    store.publish(run.pk, {})
    moments = random.Random(1)
    states = []
    for _ in range(8):
        again = a_run(run.sae, run.dataset)
        synthetic.load(again)
        assert runs.advance(again.pk, LATENTS, Run.State.SEALED)
        child = nursery.born("publish", again.pk)
        time.sleep(moments.uniform(0.01, 0.25))
        nursery.kill(child)
        assert pointer_and_data_agree(run.sae, again)
        states.append(again.state)
        wait_for(lambda again=again: synthetic.publish_alone(again.pk))
        assert pointer_and_data_agree(run.sae, again) and again.state == Run.State.LIVE
    assert Run.State.SEALED in states
    assert Run.objects.filter(sae=run.sae, state=Run.State.LIVE).count() == 1


@pytest.mark.parametrize("awaited", ["sae_backend_sae", "latent", "latent_page"])
def test_a_publisher_killed_inside_its_transaction_has_published_nothing(
    nursery: Nursery, run: Run, awaited: str
) -> None:
    synthetic.load_and_seal(run)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"lock table {awaited} in share row exclusive mode")
        child = nursery.born("publish", run.pk)
        wait_for(lambda: synthetic.query("select 1 from pg_locks where not granted"))
        nursery.kill(child)
    wait_for(lambda: gone(child))
    assert pointer_and_data_agree(run.sae, run) and run.state == Run.State.SEALED
    wait_for(lambda: synthetic.publish_alone(run.pk))
    assert pointer_and_data_agree(run.sae, run) and run.state == Run.State.LIVE


def test_an_index_that_is_still_built_for_a_dead_publisher_does_not_stand_in_the_way_of_the_next(run: Run) -> None:
    synthetic.load(run)
    assert runs.advance(run.pk, LATENTS, Run.State.SEALED)
    dead = connection.copy()
    dead.set_autocommit(False)
    with dead.cursor() as cursor, ThreadPoolExecutor(1) as other:
        cursor.execute(f"create unique index if not exists latent_r{run.pk}_pk on latent_r{run.pk} (run_id, index)")
        published = other.submit(synthetic.apart, lambda: synthetic.publish_alone(run.pk))
        wait_for(lambda: published.done() or synthetic.query("select 1 from pg_locks where not granted"))
        with suppress(Error):
            dead.commit()
        assert published.result()
    dead.close()
    assert pointer_and_data_agree(run.sae, run) and run.state == Run.State.LIVE


def test_tables_that_a_killed_publisher_attached_are_pointed_at_by_the_next(run: Run) -> None:
    synthetic.load_and_seal(run)
    with store._to_publish(run.pk):
        store._attach(run.pk)
    assert pointer_and_data_agree(run.sae, run) and run.state == Run.State.SEALED
    assert synthetic.publish_alone(run.pk)
    assert pointer_and_data_agree(run.sae, run) and run.state == Run.State.LIVE
    indexes = synthetic.query("select count(*) from pg_indexes where tablename = %s", f"latent_r{run.pk}")
    assert indexes == [(len(store.SORTABLE) + 2,)]  # the key's is not built again
