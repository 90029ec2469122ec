"""Real worker processes, started as the launcher starts them: killed, doubled, and without their messages."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings

from sae_backend import launch, processes, tasks
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae, SaeImport
from tests.backend import demo, messages, synthetic

pytestmark = pytest.mark.django_db(transaction=True)
STALLED_SECONDS = 3.0
SLOWER = {**demo.QUICK, "shard_contexts": 4, "shard_latents": 128}  # time to be killed in


class Workers:
    """Worker processes of this test's database and Redis, by node name; nothing of them is left after the test."""

    def __init__(self, environment: dict[str, str], logs: Path) -> None:
        self.environment, self.logs = environment, logs
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, name: str = "compute") -> subprocess.Popen[bytes]:
        child = launch.worker("compute", name)
        process = processes.spawn(
            child.command, self.logs / f"{name}.log", signal.SIGKILL, env=self.environment, cwd=launch.ROOT
        )
        self.running.append(process)
        return process

    def log(self) -> str:
        return "\n".join(processes.tail(path, 40) for path in self.logs.glob("*.log"))

    def stop(self) -> None:
        processes.stop(self.running, (signal.SIGTERM, 4.0))

    def wait_for(self, condition: Callable[[], object], seconds: float = 90.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log()
            assert not Run.objects.filter(state=Run.State.FAILED).exists(), self.log()
            time.sleep(0.05)


@pytest.fixture
def workers(site_environment: dict[str, str], tmp_path: Path) -> Iterator[Workers]:
    messages.forget()
    quick = {"STALLED_SECONDS": str(STALLED_SECONDS), "WORKER_HEARTBEAT_SECONDS": "0.5", "COMPUTE_DTYPE": "float32"}
    workers = Workers({**site_environment, **quick, "OMP_NUM_THREADS": "1"}, tmp_path)
    yield workers
    workers.stop()


@pytest.fixture
def lm(workers: Workers) -> LanguageModel:
    return demo.a_language_model()


@pytest.fixture
def dataset(lm: LanguageModel) -> Dataset:
    return demo.a_dataset(lm)


@pytest.fixture
def sae(lm: LanguageModel) -> Sae:
    from sae_backend import jobs

    row = demo.an_import(lm)
    jobs.import_sae(row.pk)
    row.refresh_from_db()
    assert row.sae is not None, row.error
    return row.sae


def new_run(sae: Sae, dataset: Dataset, **options: Any) -> Run:
    from sae_backend import jobs

    return jobs.new_run(sae, dataset, **{**SLOWER, **options})


def done(run: Run) -> int:
    return run.shards.filter(state=RunShard.State.DONE).count()


def live(run: Run) -> bool:
    return demo.stage(run) == Run.State.LIVE


_digests: list[list[str]] = []


def undisturbed(sae: Sae, dataset: Dataset) -> list[str]:
    """What a run that nobody disturbs gives, once for all tests: its weights and text are the same."""
    if not _digests:
        run = new_run(sae, dataset)
        messages.carry_out()
        assert live(run)
        _digests.append(synthetic.digest(run))
    return _digests[0]


def test_a_worker_takes_a_checkpoint_to_live_pages(workers: Workers, lm: LanguageModel, dataset: Dataset) -> None:
    row = demo.an_import(lm, dataset)
    tasks.import_sae.delay(row.pk)
    broken = demo.an_import(lm, dataset, source=Path("/nowhere"))
    tasks.import_sae.delay(broken.pk)
    workers.start()
    workers.wait_for(lambda: SaeImport.objects.filter(pk=row.pk, run__state=Run.State.LIVE))
    workers.wait_for(lambda: SaeImport.objects.filter(pk=broken.pk, state=SaeImport.State.FAILED))
    row.refresh_from_db()
    assert row.run is not None and row.run.tokens_done == row.run.tokens_total == dataset.n_tokens
    assert sum(row.run.summary["counts"].values()) == 1024
    assert [line.text for line in row.run.log.order_by("pk")][-1] == "published"


def test_a_killed_worker_is_followed_by_one_of_its_name_that_goes_on_at_once(
    workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STALLED_SECONDS"] = "600"  # nobody waits for a claim to run out
    run = new_run(sae, dataset)
    for shards in (2, 16):  # of contexts, of latents
        worker = workers.start()
        workers.wait_for(lambda shards=shards: done(run) >= shards)
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
    workers.start()
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected


def test_two_workers_share_a_run_and_give_what_one_gives(workers: Workers, sae: Sae, dataset: Dataset) -> None:
    expected = undisturbed(sae, dataset)
    for name in ("one", "two"):
        workers.start(name)
    workers.wait_for(lambda: workers.log().count(" ready.") == 2)
    run = new_run(sae, dataset)
    workers.wait_for(lambda: live(run))
    took_part = set(run.shards.values_list("worker", flat=True))
    assert {name.partition("@")[0] for name in took_part} == {"one", "two"}
    assert synthetic.digest(run) == expected


def test_a_run_goes_on_when_redis_has_lost_every_message(workers: Workers, sae: Sae, dataset: Dataset) -> None:
    expected = undisturbed(sae, dataset)
    workers.start()
    run = new_run(sae, dataset)
    workers.wait_for(lambda: done(run) >= 2)
    redis.Redis.from_url(settings.REDIS_URL).flushdb()
    workers.wait_for(lambda: live(run))
    assert run.log.filter(text__startswith="nobody was working on this run").exists()
    assert synthetic.digest(run) == expected
