"""Runs that failed or were cancelled go on where they stopped; and what was lost meanwhile is done again."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from sae_backend import claims, jobs, queue, runs, spool, storage, store
from sae_backend.models import RESUMABLE, Dataset, Run, RunShard, Sae
from tests.backend import demo, messages, synthetic
from tests.backend.imports import until
from tests.backend.synthetic import CONTEXTS, LATENTS

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
ALL = [*range(6)], [*range(8)]  # shards of contexts and of latents


@pytest.fixture
def run(sae: Sae, dataset: Dataset) -> Run:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    messages.forget()
    return run


@pytest.fixture
def expected(sae: Sae, dataset: Dataset) -> list[str]:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    messages.carry_out()
    return synthetic.digest(run)


def compute(run: Run, contexts: int = 6, latents: int = 0) -> None:
    for index in range(contexts):
        jobs.compute_contexts(run.pk, index)
    for index in range(latents):
        jobs.load_latents(run.pk, index)
    messages.forget()


def sent(run: Run) -> tuple[list[int], list[int]]:
    """Carry out what waits; which shards of contexts and of latents that were."""
    before = dict(run.shards.values_list("pk", "attempts"))
    messages.carry_out()
    shards = run.shards.order_by("kind", "index")
    again = [shard for shard in shards if shard.attempts > before[shard.pk]]
    return [s.index for s in again if s.kind == CONTEXTS], [s.index for s in again if s.kind == LATENTS]


def test_a_run_cancelled_before_it_began_waits_again(run: Run, expected: list[str]) -> None:
    assert queue.cancel(run.pk) and demo.stage(run) == Run.State.CANCELLED and run.stopped_at is not None
    assert queue.resume(run.pk)
    assert demo.stage(run) == Run.State.QUEUED and run.stopped_at is None
    assert sent(run) == ALL
    assert synthetic.digest(run) == expected


def test_contexts_that_are_in_the_spool_are_kept(run: Run, expected: list[str]) -> None:
    compute(run, contexts=4)
    queue.cancel(run.pk)
    assert queue.resume(run.pk) and demo.stage(run) == Run.State.COMPUTING
    assert sent(run) == ([4, 5], ALL[1])
    assert synthetic.digest(run) == expected


def test_latents_that_are_loaded_are_kept(run: Run, expected: list[str]) -> None:
    compute(run, latents=3)
    runs.fail(run.pk, "the disk is full")
    assert queue.resume(run.pk) and demo.stage(run) == Run.State.LOADING and run.error == ""
    assert run.computed_at is not None  # its contexts took what they took
    assert sent(run) == ([], [3, 4, 5, 6, 7])
    assert synthetic.digest(run) == expected


def test_a_run_that_stopped_before_its_publication_is_published(run: Run, expected: list[str]) -> None:
    compute(run, latents=8)
    assert demo.stage(run) == Run.State.SEALED and run.loaded_at is not None
    queue.cancel(run.pk)
    assert queue.resume(run.pk) and sent(run) == ([], [])
    assert demo.stage(run) == Run.State.LIVE and synthetic.digest(run) == expected


def test_a_file_that_is_gone_is_computed_again_and_all_latents_with_it(run: Run, expected: list[str]) -> None:
    compute(run, latents=3)
    queue.cancel(run.pk)
    spool.remove(run.shards.get(kind=CONTEXTS, index=2))
    assert queue.resume(run.pk) and demo.stage(run) == Run.State.COMPUTING
    assert sent(run) == ([2], ALL[1])
    assert synthetic.digest(run) == expected


@pytest.mark.parametrize("harm", ["drop table latent_page_r{}", "delete from latent_r{} where index = 200"])
def test_tables_that_were_dropped_or_lost_a_row_are_filled_again(run: Run, expected: list[str], harm: str) -> None:
    compute(run, latents=3)
    queue.cancel(run.pk)
    with connection.cursor() as cursor:
        cursor.execute(harm.format(run.pk))
    assert queue.resume(run.pk)
    assert sent(run) == ([], ALL[1])
    assert synthetic.digest(run) == expected


def test_when_everything_was_cleaned_away_everything_is_computed_again(run: Run, expected: list[str]) -> None:
    compute(run, latents=3)
    queue.cancel(run.pk)
    spool.empty(run.pk)
    store.drop_tables(run.pk)
    assert queue.resume(run.pk)
    assert sent(run) == ALL
    assert synthetic.digest(run) == expected


def test_a_shard_that_was_given_up_has_as_many_tries_again(run: Run, expected: list[str]) -> None:
    run.shards.filter(kind=CONTEXTS, index=2).update(deaths=jobs.MAX_DEATHS)
    queue.enqueue(run.pk)
    messages.carry_out([])
    assert demo.stage(run) == Run.State.FAILED
    assert queue.resume(run.pk)
    messages.carry_out()
    assert demo.stage(run) == Run.State.LIVE and synthetic.digest(run) == expected


def test_what_a_worker_brings_from_before_a_run_was_resumed_is_refused(run: Run) -> None:
    compute(run)
    late = claims.claim(run.pk, LATENTS, 0, "late")
    assert late is not None
    queue.cancel(run.pk)
    assert queue.resume(run.pk)
    assert not store.load_latents(late, [synthetic.shard(late.lo, late.hi)])
    assert synthetic.count(f"latent_r{run.pk}") == 0


def test_a_run_that_is_live_is_neither_cancelled_nor_resumed(run: Run) -> None:
    queue.enqueue(run.pk)
    messages.carry_out()
    assert demo.stage(run) == Run.State.LIVE
    assert not queue.cancel(run.pk) and not queue.resume(run.pk)
    assert demo.stage(run) == Run.State.LIVE and messages.take() is None


def test_a_stalled_run_is_resumed_and_one_that_moves_is_left_alone(run: Run) -> None:
    compute(run, contexts=2)
    shard = claims.claim(run.pk, CONTEXTS, 3, "hung")
    assert shard is not None and not queue.resume(run.pk)
    long_ago = timezone.now() - timedelta(hours=1)
    RunShard.objects.filter(pk=shard.pk).update(heartbeat_at=long_ago)
    Run.objects.filter(pk=run.pk).update(heartbeat_at=long_ago)
    assert queue.resume(run.pk) and not queue.resume(run.pk)
    assert sent(run) == ([2, 3, 4, 5], ALL[1])
    assert demo.stage(run) == Run.State.LIVE


def spoil(run: Run, index: int) -> None:
    """Change one bit of a shard's file."""
    with spool.reading([run.shards.get(kind=CONTEXTS, index=index)]) as [path]:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_file_that_is_spoilt_again_and_again_fails_the_run_with_a_sentence(run: Run) -> None:
    for _ in range(queue.MAX_LOSSES + 1):
        compute(run)
        assert demo.stage(run) == Run.State.LOADING
        spoil(run, 1)
        for index in range(2):
            jobs.load_latents(run.pk, index)
        messages.forget()
    assert demo.stage(run) == Run.State.FAILED
    assert run.error.startswith("activations of contexts 8 to 16 were written 3 times, and each time the file was gone")


def test_a_file_is_found_spoilt_only_once_however_many_find_it(run: Run) -> None:
    compute(run)
    spoil(run, 1)
    lost = [run.shards.get(kind=CONTEXTS, index=1)]
    for _ in range(3):
        queue.recompute(lost)
    assert run.log.filter(text__startswith="activations of contexts 8 to 16 are gone").count() == 1
    jobs.compute_contexts(run.pk, 1)
    assert demo.stage(run) == Run.State.LOADING
    queue.recompute(lost)  # from a worker that looked before it was computed again
    assert demo.stage(run) == Run.State.LOADING


def test_a_storage_that_is_away_has_lost_nothing(run: Run, settings: Any) -> None:
    compute(run)
    settings.STORE_URL = "http://elsewhere"
    with pytest.raises(storage.StorageError):
        jobs.load_latents(run.pk, 0)
    assert demo.stage(run) == Run.State.FAILED and "STORE_URL is http://elsewhere" in run.error
    assert done(run, CONTEXTS) == 6


def done(run: Run, kind: str) -> int:
    return run.shards.filter(kind=kind, state=RunShard.State.DONE).count()


@pytest.mark.parametrize("sealed_again", [False, True])
def test_a_publication_under_way_outlives_a_cancelled_run_that_is_resumed_at_once(
    run: Run, expected: list[str], sealed_again: bool
) -> None:
    """Its publisher finds a run that is not sealed, or sealed anew: it never fails it, and somebody publishes it."""
    compute(run, 6, 8)
    publisher = threading.Thread(target=synthetic.apart, args=[lambda: jobs.publish(run.pk)])
    with synthetic.unindexed(run):
        publisher.start()
        until(lambda: synthetic.indexing(run))
        assert queue.cancel(run.pk)
        if sealed_again:
            assert queue.resume(run.pk) and messages.carry_out() == ["publish_run"]  # which another is at
    if not sealed_again:
        publisher.join()
        assert demo.stage(run) == Run.State.CANCELLED and queue.resume(run.pk)
        messages.carry_out()
    publisher.join()
    assert demo.stage(run) == Run.State.LIVE and synthetic.digest(run) == expected


def test_a_publisher_that_finds_its_run_taken_up_again_leaves_it(run: Run) -> None:
    compute(run, 6, 8)
    publisher = threading.Thread(target=synthetic.apart, args=[lambda: jobs.publish(run.pk)])
    with synthetic.unindexed(run):
        publisher.start()
        until(lambda: synthetic.indexing(run))
        assert runs.cancel(run.pk) and runs.reopen(run.pk, RESUMABLE)
    publisher.join()
    assert (demo.stage(run), run.error) == (Run.State.LOADING, "")
