"""Claims: a worker's present one counts and no other, whoever wakes up when; and how each way out of one is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from django.db import connections
from django.utils import timezone

from sae_backend import claims, runs, store
from sae_backend.core.results import LatentShard
from sae_backend.models import Run, RunShard
from tests.backend import synthetic
from tests.backend.synthetic import CONTEXTS, LATENTS, a_dataset, a_run, a_sae

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run() -> Run:
    dataset = a_dataset()
    return a_run(a_sae(dataset), dataset)


def claimed(run: Run, worker: str, index: int = 0, kind: str = LATENTS) -> RunShard:
    shard = claims.claim(run.pk, kind, index, worker)
    assert shard is not None
    return shard


def silence(shard: RunShard, seconds: float = 3600) -> None:
    RunShard.objects.filter(pk=shard.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=seconds))


def now(shard: RunShard) -> tuple[str, str, int, int]:
    row = RunShard.objects.get(pk=shard.pk)
    return row.state, row.worker, row.attempts, row.deaths


def test_an_earlier_claim_of_the_same_worker_counts_no_more(run: Run) -> None:
    first = claimed(run, "one")
    second = claimed(run, "one")  # the first was left when the database went away
    assert not claims.heartbeat(first, 1) and not claims.give_back(first)
    assert not store.load_latents(first, [synthetic.shard(first.lo, first.hi)])
    assert claims.heartbeat(second, 1) and now(second) == ("claimed", "one", 2, 0)
    assert store.load_latents(second, [synthetic.shard(second.lo, second.hi)])


def test_contexts_of_an_earlier_claim_are_not_taken_for_those_of_the_present_one(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING)
    run.shards.filter(kind=CONTEXTS).update(state=RunShard.State.TODO)
    late = claimed(run, "late", kind=CONTEXTS)
    silence(late)
    present = claimed(run, "present", kind=CONTEXTS)
    assert not claims.finish_contexts(late, checksum=1)
    assert claims.finish_contexts(present, checksum=2)
    assert RunShard.objects.get(pk=present.pk).checksum == 2
    assert not claims.finish_contexts(present, checksum=3)


@pytest.mark.parametrize("stop", [runs.cancel, lambda pk: runs.fail(pk, "no")], ids=["cancelled", "failed"])
def test_a_worker_of_a_stopped_run_hears_of_it_with_its_next_heartbeat(run: Run, stop: Callable[[int], bool]) -> None:
    shard = claimed(run, "one")
    assert claims.heartbeat(shard, 1)
    stop(run.pk)
    assert not claims.heartbeat(shard, 2)


def test_only_the_end_of_a_worker_counts_against_its_shard(run: Run) -> None:
    shard = claimed(run, "lives")
    assert claims.give_back(shard) and now(shard) == ("todo", "lives", 1, 0)
    shard = claimed(run, "is killed")
    assert claims.release("is killed") == [shard] and now(shard)[3] == 1
    shard = claimed(run, "hangs")
    silence(shard)
    assert claims.take_silent() == [shard] and now(shard)[3] == 2
    silence(claimed(run, "hangs as well"))
    shard = claimed(run, "takes it before anybody looks")
    assert now(shard)[3] == 3
    assert store.load_latents(shard, [synthetic.shard(shard.lo, shard.hi)]) and now(shard)[3] == 0


def test_what_becomes_of_a_worker_is_in_the_log_of_its_run(run: Run) -> None:
    claimed(run, "one", 3)
    silence(claimed(run, "two", 4))
    claims.release("one")
    claims.take_silent()
    silence(claimed(run, "three", 5))
    claimed(run, "four", 5)
    again = "they are queued again"
    assert list(run.log.order_by("pk").values_list("level", "text")) == [
        ("warning", f"one ended while it computed latents 384 to 512: {again}"),
        ("warning", f"two fell silent while it computed latents 512 to 640: {again}"),
        ("warning", "three fell silent while it computed latents 640 to 768: four has them now"),
    ]


def test_silent_claims_are_taken_once_and_those_that_live_not_at_all(run: Run) -> None:
    silent, alive = claimed(run, "silent", 0), claimed(run, "alive", 1)
    silence(silent)
    assert claims.take_silent(run.pk + 1) == []
    assert claims.take_silent(run.pk) == [silent]
    assert claims.take_silent() == [] and now(alive)[0] == "claimed"
    assert run.log.count() == 1


def test_claims_of_a_run_that_is_over_are_left_as_they_are(run: Run) -> None:
    shard = claimed(run, "one")
    silence(shard)
    runs.cancel(run.pk)
    assert claims.take_silent() == [] and claims.release("one") == []


def in_thread(work: Callable[[], bool]) -> list[bool]:
    """Another connection's answer; none if it has to wait."""
    answers: list[bool] = []

    def ask() -> None:
        with synthetic.waiting_at_most(60):
            answers.append(work())
        connections.close_all()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers


def test_heartbeats_are_written_while_a_shard_is_copied(run: Run) -> None:
    """A long COPY is not taken for a hung one."""
    shard = claimed(run, "one")
    beats: list[bool] = []

    def pieces() -> Iterator[LatentShard]:
        yield synthetic.shard(shard.lo, shard.lo + 64)
        beats.extend(in_thread(lambda: claims.heartbeat(shard, 64)))
        yield synthetic.shard(shard.lo + 64, shard.hi)

    assert store.load_latents(shard, pieces())
    assert beats == [True]
