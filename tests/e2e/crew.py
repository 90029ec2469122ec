"""Real worker processes, started as the launcher starts them, and what a test asks of them and of their run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from django.db import Error, connection
from django.db.models import Count

from sae_backend import launch, processes, queue
from sae_backend.models import Dataset, Run, RunShard, Sae
from tests.backend import demo, synthetic

CONTEXTS, LATENTS = RunShard.Kind.CONTEXTS, RunShard.Kind.LATENTS
STALLED_SECONDS = 10.0  # of a worker that a full machine holds up it takes no work
QUICK = {
    "STALLED_SECONDS": str(STALLED_SECONDS), "WORKER_HEARTBEAT_SECONDS": "0.3", "COMPUTE_DTYPE": "float32",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
SLOWER = {**demo.QUICK, "shard_contexts": 4, "shard_latents": 128}  # time to be killed in
PATIENCE = 240.0  # seconds; a worker is there after 5 on an idle machine
A = TypeVar("A")


class Workers:
    """Worker processes of one database and Redis, by node name; nothing of them is left after the test."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self.environment, self.logs = {**environment, **QUICK}, logs
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str = "compute", *prefix: str) -> subprocess.Popen[bytes]:
        """Start a worker, or the next one of a name; the prefix is a command that the worker's is appended to."""
        command = [*prefix, *launch.worker("compute", name).command]
        process = processes.spawn(
            command, self.logs / f"{name}.log", signal.SIGKILL, env=self.environment, cwd=launch.ROOT
        )
        self.running[name] = process
        return process

    def kill(self, name: str) -> None:
        """Send SIGKILL, as the kernel does for want of memory; the worker was alive until then."""
        process = self.running.pop(name)
        assert process.poll() is None, self.log()
        process.kill()
        process.wait()

    def signal(self, shard: RunShard, number: signal.Signals) -> None:
        """Send a signal to the worker that holds a shard."""
        self.running[shard.worker.partition("@")[0]].send_signal(number)

    def log(self, lines: int = 40) -> str:
        return "\n".join(f"{path.name}\n{processes.tail(path, lines)}" for path in sorted(self.logs.glob("*.log")))

    def report(self) -> str:
        """Where every run is, and what the workers said last."""
        lines = [f"{run.pk} {run.state} {run.error}" for run in Run.objects.order_by("pk")]
        shards = RunShard.objects.values_list("run", "kind", "state").annotate(n=Count("pk")).order_by("run", "kind")
        return "\n".join([*lines, *map(str, shards), f"{queue.waiting()} messages", self.log()])

    def stop(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        processes.stop(list(self.running.values()), (signal.SIGTERM, 4.0))

    def wait_for(self, condition: Callable[[], A], failing: bool = False) -> A:
        """Wait until something is so; a run that fails meanwhile ends the wait, unless that is what the test is for."""

        def so() -> A:
            assert failing or not Run.objects.filter(state=Run.State.FAILED).exists(), self.report()
            return condition()

        return until(so, self.report)

    def ready(self, n: int) -> None:
        """Wait until so many workers in all have come up."""
        self.wait_for(lambda: sum(path.read_text().count(" ready.") for path in self.logs.glob("*.log")) >= n)


def until(condition: Callable[[], A], report: Callable[[], str]) -> A:
    """Wait until something is so, and give it; a machine that is slow has time."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, report()
        time.sleep(0.02)
    return found


class Kept:
    """Shards of a run that workers get by and by: however late a test looks, some are left to meet them in."""

    STATE = "kept"  # which nobody claims, and without which no stage ends

    def __init__(self, workers: Workers, run: Run, kind: str, stock: int = 2) -> None:
        """Before any worker can be at them; so many are open at a time."""
        self.workers, self.run, self.kind, self._stock = workers, run, kind, stock
        rest = list(run.shards.filter(kind=kind).order_by("index")[stock:])
        RunShard.objects.filter(pk__in=[shard.pk for shard in rest]).update(state=self.STATE)

    def hand_out(self, n: int | None = None) -> None:
        """Let workers have so many of them, or all."""
        for shard in self.run.shards.filter(kind=self.kind, state=self.STATE).order_by("index")[:n]:
            RunShard.objects.filter(pk=shard.pk).update(state=RunShard.State.TODO)
            queue.send(shard)

    def stock(self) -> None:
        """Let there be something to do."""
        if self.run.shards.filter(kind=self.kind, state=RunShard.State.TODO).count() < self._stock:
            self.hand_out(self._stock)

    def held(self) -> list[RunShard]:
        self.stock()
        return [shard for shard in held(self.run) if shard.kind == self.kind]

    def at_work(self) -> None:
        """Wait until something more of the run is done and a worker is at the next."""
        before = done(self.run)
        self.workers.wait_for(lambda: self.held() and done(self.run) > before)

    def met(self) -> RunShard:
        """Stop a worker inside a shard; which."""
        return self.workers.wait_for(lambda: next(filter(self._stopped, self.held()), None))

    def _stopped(self, shard: RunShard) -> bool:
        self.workers.signal(shard, signal.SIGSTOP)
        if (shard.pk, shard.attempts) in [(each.pk, each.attempts) for each in held(self.run, shard.worker)]:
            return True
        self.workers.signal(shard, signal.SIGCONT)  # it was done a moment before
        return False


@contextmanager
def locked(table: str, mode: str) -> Iterator[None]:
    """Have workers wait where they come to a table, until the block or the server ends."""
    other = connection.copy()
    other.set_autocommit(False)
    try:
        with other.cursor() as cursor:
            cursor.execute(f"lock table {table} in {mode} mode")
        yield
    finally:
        with suppress(Error):
            other.rollback()
        other.close()


def unread(dataset: Dataset) -> AbstractContextManager[None]:
    """Whoever is at contexts waits inside its shard, before it computes."""
    return locked(f"context_d{dataset.pk}", "access exclusive")


def uncopied(run: Run) -> AbstractContextManager[None]:
    """Whoever is at latents waits inside its shard, once COPY is half done: at the second table."""
    return locked(f"latent_page_r{run.pk}", "share")


@contextmanager
def inside_copy(workers: Workers, run: Run, kept: Kept) -> Iterator[None]:
    """Once a worker's COPY is half done."""
    waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like 'copy latent_page_%'"
    with uncopied(run):
        workers.wait_for(lambda: kept.held() and synthetic.query(waits))
        yield


def chance() -> random.Random:
    """Moments that differ from test to test and from day to day; FAULT_SEED repeats those of a failure."""
    seed = int(os.environ.get("FAULT_SEED") or random.randrange(10**6))
    print(f"FAULT_SEED={seed}")
    return random.Random(seed)


def new_run(sae: Sae, dataset: Dataset, **options: Any) -> Run:
    from sae_backend import jobs

    return jobs.new_run(sae, dataset, **{**SLOWER, **options})


def done(run: Run, kind: str | None = None) -> int:
    shards = run.shards.filter(state=RunShard.State.DONE)
    return (shards if kind is None else shards.filter(kind=kind)).count()


def held(run: Run, worker: str = "") -> list[RunShard]:
    """The shards that a worker, or any, is at."""
    claimed = run.shards.filter(state=RunShard.State.CLAIMED, worker__startswith=worker)
    return list(claimed.order_by("kind", "index"))


def live(run: Run) -> bool:
    return demo.stage(run) == Run.State.LIVE


def failed(run: Run) -> bool:
    return demo.stage(run) == Run.State.FAILED


def logged(run: Run, words: str) -> int:
    return run.log.filter(text__contains=words).count()


_digests: dict[int, list[str]] = {}


def undisturbed(sae: Sae, dataset: Dataset) -> list[str]:
    """What a run that nobody disturbs gives, once for all tests: its weights and text are the same."""
    if dataset.n_contexts not in _digests:
        run = new_run(sae, dataset)
        carry_out(run)
        _digests[dataset.n_contexts] = synthetic.digest(run)
    return _digests[dataset.n_contexts]


def carry_out(run: Run) -> None:
    """All of a run in this process, one shard after the other."""
    from sae_backend import jobs

    for shard in run.shards.filter(kind=CONTEXTS).order_by("index"):
        jobs.compute_contexts(run.pk, shard.index)
    for shard in run.shards.filter(kind=LATENTS).order_by("index"):
        jobs.load_latents(run.pk, shard.index)
    jobs.publish(run.pk)
    assert live(run), run.error
