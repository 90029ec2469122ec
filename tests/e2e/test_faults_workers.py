"""Workers that are killed, hang, are told to stop or stand in each other's way: nothing lost, nothing doubled."""

from __future__ import annotations

import random
import signal

import pytest

from sae_backend import jobs, queue, spool, tasks
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae
from tests.backend import demo, synthetic
from tests.e2e import crew
from tests.e2e.crew import CONTEXTS, LATENTS, Kept, Workers, done, failed, held, live, logged, new_run, undisturbed

pytestmark = pytest.mark.django_db(transaction=True)
NAMES = ("one", "two", "three")
KINDS = {Run.State.COMPUTING: CONTEXTS, Run.State.LOADING: LATENTS}
MANY = {"shard_contexts": 2, "shard_latents": 2}  # 240 and 512 shards


class Killer:
    """Kills whichever worker of a run is at a shard, at moments that chance gives, and starts it again."""

    def __init__(self, workers: Workers, run: Run, moments: random.Random) -> None:
        self.workers, self.run, self.moments = workers, run, moments
        self.orphans: set[tuple[int, int]] = set()  # claims of the dead

    def kill(self, times: int, kept: Kept) -> None:
        """Kill so often; some shards are kept from the workers until the last kill."""
        for _ in range(times):
            further = done(self.run, kept.kind) + self.moments.randrange(3)
            self.workers.wait_for(lambda further=further: self._past(kept, further) and self._stopped_at_work(kept))
            self._kill_one()
        kept.hand_out()

    def _past(self, kept: Kept, further: int) -> bool:
        kept.stock()
        return done(self.run, kept.kind) >= further

    def _stopped_at_work(self, kept: Kept) -> bool:
        """Stop a worker that holds a shard, so that the kill meets it there; not, if it was done a moment before."""
        for shard in self._work(kept):
            self.victim = shard.worker.partition("@")[0]
            self.workers.signal(shard, signal.SIGSTOP)
            if shard in self._work(kept):
                return True
            self.workers.signal(shard, signal.SIGCONT)
        return False

    def _work(self, kept: Kept) -> list[RunShard]:
        """Shards that living workers hold, in an order that chance gives; none so often met that its run would fail."""
        there = [s for s in kept.held() if s.worker.partition("@")[0] in self.workers.running]
        spared = {s.worker for s in there if s.deaths >= jobs.MAX_DEATHS - 1}
        mine = [s for s in there if (s.pk, s.attempts) not in self.orphans and s.worker not in spared]
        return self.moments.sample(mine, len(mine))

    def _kill_one(self) -> None:
        self.workers.kill(self.victim)
        self.orphans |= {(s.pk, s.attempts) for s in held(self.run, f"{self.victim}@")}
        self.workers.start(self.victim)


def test_workers_killed_twenty_times_at_random_moments_give_what_undisturbed_ones_give(
    workers: Workers, lm: LanguageModel, sae: Sae
) -> None:
    long = demo.a_dataset(lm, 480, "long")
    expected = undisturbed(sae, long)
    workers.environment["STALLED_SECONDS"] = "60"  # a worker that is started again takes back what its name held
    run = new_run(sae, long, **MANY)
    contexts, latents = Kept(workers, run, CONTEXTS, stock=8), Kept(workers, run, LATENTS, stock=8)
    killer = Killer(workers, run, crew.chance())
    for name in NAMES:
        workers.start(name)
    killer.kill(10, contexts)
    workers.wait_for(lambda: demo.stage(run) == Run.State.LOADING)
    killer.kill(10, latents)
    workers.wait_for(lambda: live(run))
    assert logged(run, "while it computed") >= 15  # the database may have had a victim's last word
    assert synthetic.digest(run) == expected
    assert sum(run.summary["counts"].values()) == sae.d_sae


def test_a_worker_that_hangs_is_replaced_and_does_no_harm_when_it_wakes_up(
    workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset)
    stages = Kept(workers, run, CONTEXTS), Kept(workers, run, LATENTS)
    for name in NAMES[:2]:
        workers.start(name)
    for kept in stages:
        while not taken_by_another(workers, kept.met()):
            pass  # what it had said last was under way to the database
        kept.hand_out()
    workers.wait_for(lambda: live(run))
    assert logged(run, "fell silent while it computed") >= 2
    assert synthetic.digest(run) == expected


def test_a_worker_that_hangs_while_it_publishes_is_replaced(workers: Workers, sae: Sae, dataset: Dataset) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset)
    with synthetic.unindexed(run):
        hung = workers.start("hung")
        workers.wait_for(lambda: synthetic.indexing(run))
        hung.send_signal(signal.SIGSTOP)
        workers.start("other")
        workers.ready(2)
    workers.wait_for(lambda: live(run))
    hung.send_signal(signal.SIGCONT)
    again = new_run(sae, dataset)
    workers.wait_for(lambda: live(again))
    assert synthetic.digest(run) == synthetic.digest(again) == expected
    assert hung.poll() is None and logged(run, "published") == 1


def taken_by_another(workers: Workers, shard: RunShard) -> bool:
    """Wait until a shard is done, and let the worker go on that was stopped in it; whether another did it."""
    workers.wait_for(RunShard.objects.filter(pk=shard.pk, state=RunShard.State.DONE).exists)
    workers.signal(shard, signal.SIGCONT)
    return RunShard.objects.get(pk=shard.pk).worker != shard.worker


def test_a_shard_in_which_five_workers_are_killed_for_want_of_memory_fails_its_run_with_a_sentence(
    workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    workers.environment["STALLED_SECONDS"] = "600"  # no claim runs out because a machine is slow
    run = new_run(sae, dataset, shard_contexts=48)
    with crew.unread(dataset):
        for n in range(jobs.MAX_DEATHS):
            workers.start()
            workers.wait_for(lambda n=n: [s for s in held(run) if s.attempts == n + 1])
            workers.kill("compute")
        workers.start()
        workers.wait_for(lambda: failed(run), failing=True)
    assert run.error == (
        "5 workers ended while they computed contexts 0 to 48: perhaps for want of memory. Give workers more, or take "
        "smaller shards, and run again"
    )
    assert logged(run, "ended while it computed contexts 0 to 48: they are queued again") == jobs.MAX_DEATHS


def test_a_worker_that_is_told_to_stop_leaves_its_shard_to_the_next_at_once(
    workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    workers.environment["STALLED_SECONDS"] = "600"
    run = new_run(sae, dataset, shard_contexts=24)
    with crew.unread(dataset):
        worker = workers.start()
        workers.wait_for(lambda: held(run))
        worker.send_signal(signal.SIGTERM)
        workers.wait_for(lambda: "Warm shutdown" in workers.log())
    workers.wait_for(lambda: worker.poll() is not None)
    assert done(run) == 0
    assert list(run.shards.filter(attempts=1).values_list("state", "deaths")) == [(RunShard.State.TODO, 0)]
    workers.start("next")
    workers.wait_for(lambda: live(run))


def test_every_message_delivered_three_times_at_once_is_carried_out_once(
    workers: Workers, sae: Sae, lm: LanguageModel, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STALLED_SECONDS"] = "600"  # no claim runs out because a machine is slow
    imported = demo.an_import(lm, dataset)
    for name in NAMES:
        workers.start(name)
    workers.ready(3)
    for _ in range(3):
        tasks.import_sae.delay(imported.pk)
    workers.wait_for(lambda: Run.objects.filter(imports=imported))
    [again] = Run.objects.filter(imports=imported)
    run = new_run(sae, dataset)
    for _ in range(2):
        for shard in run.shards.order_by("index"):
            queue.send(shard)
        tasks.publish_run.delay(run.pk)
    workers.wait_for(lambda: done(run, LATENTS))
    for _ in range(3):
        for shard in run.shards.filter(kind=LATENTS):
            queue.send(shard)
    over = {Run.State.LIVE, Run.State.RETIRED}  # by the other
    workers.wait_for(lambda: {demo.stage(run), demo.stage(again)} == over)
    for _ in range(3):
        tasks.publish_run.delay(run.pk)
    workers.wait_for(lambda: queue.waiting() == 0)
    for each in (run, again):
        assert set(each.shards.values_list("attempts", flat=True)) == {1}
        assert logged(each, "published") == 1
        assert synthetic.digest(each) == expected
    assert Run.objects.filter(imports=imported).count() == 1


@pytest.mark.parametrize("stage", [Run.State.COMPUTING, Run.State.LOADING, Run.State.SEALED])
def test_a_run_cancelled_while_workers_are_in_it_is_left_and_can_be_resumed(
    stage: str, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STALLED_SECONDS"] = "600"  # nobody waits for a claim to run out
    run = new_run(sae, dataset, shard_contexts=2, shard_latents=64)
    back = Kept(workers, run, KINDS[stage]) if stage in KINDS else None
    with synthetic.unindexed(run):
        for name in NAMES[:2]:
            workers.start(name)
        met = met_after_another(back) if back else None
        workers.wait_for(lambda: demo.stage(run) == stage and (met or synthetic.indexing(run)))
        assert queue.cancel(run.pk) and not queue.cancel(run.pk)
    if met:
        workers.signal(met, signal.SIGCONT)
    workers.wait_for(lambda: not held(run) and queue.waiting() == 0)
    kept = {shard.pk: shard.attempts for shard in run.shards.filter(state=RunShard.State.DONE)}
    assert demo.stage(run) == Run.State.CANCELLED and run.error == ""
    assert queue.resume(run.pk) and not queue.resume(run.pk)
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected
    assert kept == {pk: RunShard.objects.get(pk=pk).attempts for pk in kept}  # what was done is not done again


def met_after_another(kept: Kept) -> RunShard:
    """Stop a worker in a shard once one is done."""
    kept.workers.wait_for(lambda: done(kept.run, kept.kind))
    return kept.met()


def test_a_long_shard_of_a_cancelled_run_is_left_at_its_next_report(
    workers: Workers, sae: Sae, lm: LanguageModel
) -> None:
    long = demo.a_dataset(lm, 960, "longer")
    run = new_run(sae, long, shard_contexts=960)
    with crew.unread(long):
        workers.start()
        workers.wait_for(lambda: held(run))
        assert queue.cancel(run.pk)
    workers.wait_for(lambda: f"left contexts 0 to 960 of run {run.pk}" in workers.log())
    assert not held(run) and done(run) == 0 and run.pk not in spool.runs()


def test_a_shard_that_cannot_be_computed_fails_its_run_alone(workers: Workers, sae: Sae, dataset: Dataset) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STALLED_SECONDS"] = "600"
    poisoned, sound = new_run(sae, dataset, max_l0=5), new_run(sae, dataset)
    for name in NAMES[:2]:
        workers.start(name)
    workers.wait_for(lambda: live(sound), failing=True)
    assert failed(poisoned) and "more than 5 means that the checkpoint is read wrongly" in poisoned.error
    assert done(poisoned) == 0 and sum(poisoned.shards.values_list("attempts", flat=True)) <= 4
    assert synthetic.digest(sound) == expected


@pytest.mark.parametrize("harm", ["removed", "cut", "changed"])
def test_a_file_that_the_spool_loses_is_computed_again_with_all_latents(
    harm: str, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset)
    for shard in run.shards.filter(kind=CONTEXTS).order_by("index"):
        jobs.compute_contexts(run.pk, shard.index)
    for index in range(3):
        jobs.load_latents(run.pk, index)
    victim = run.shards.get(kind=CONTEXTS, index=5)
    with spool.reading([victim]) as [file]:
        whole = file.read_bytes()
    if harm == "removed":
        file.unlink()
    else:
        file.write_bytes(whole[:1000] if harm == "cut" else whole[:-1] + bytes([whole[-1] ^ 1]))
    workers.start()
    workers.wait_for(lambda: live(run))
    assert logged(run, "activations of contexts 20 to 24 are gone from the spool, or are not what was written") == 1
    assert list(run.shards.filter(kind=CONTEXTS, attempts__gt=1).values_list("index", flat=True)) == [5]
    assert synthetic.digest(run) == expected
