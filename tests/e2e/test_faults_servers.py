"""PostgreSQL and Redis that are stopped, killed and emptied under workers: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from sae_backend.embedded import Servers
from sae_backend.models import Dataset, LanguageModel, Sae
from tests.backend import demo, synthetic
from tests.e2e import crew, own
from tests.e2e.crew import CONTEXTS, LATENTS, Kept, Workers, inside_copy, live, new_run, undisturbed

pytestmark = pytest.mark.django_db(transaction=True)
MANY = {"shard_contexts": 1, "shard_latents": 16}


@pytest.fixture
def servers(transactional_db: None) -> Iterator[Servers]:
    with own.servers() as up:
        yield up


@pytest.fixture
def lm(servers: Servers) -> LanguageModel:
    return demo.a_language_model()


@pytest.fixture
def workers(servers: Servers, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers({**os.environ, **servers.environment()}, tmp_path)
    yield workers
    workers.stop()


def test_postgresql_can_be_stopped_and_killed_in_every_stage(
    servers: Servers, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset, **MANY)
    contexts, latents = Kept(workers, run, CONTEXTS, stock=8), Kept(workers, run, LATENTS, stock=8)
    for name in ("one", "two"):
        workers.start(name)
    for how in (signal.SIGINT, signal.SIGKILL):
        contexts.at_work()
        own.restart(servers, "postgres", how)
    contexts.hand_out()
    for how in (signal.SIGKILL, signal.SIGINT):
        with inside_copy(workers, run, latents):
            own.restart(servers, "postgres", how)
    latents.hand_out()
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected
    assert [process.poll() for process in workers.running.values()] == [None, None]


def test_redis_can_be_emptied_stopped_and_killed_in_every_stage(
    servers: Servers, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset, **MANY)
    stages = Kept(workers, run, CONTEXTS, stock=6), Kept(workers, run, LATENTS, stock=6)
    for name in ("one", "two"):
        workers.start(name)
    for kept in stages:
        for how in (signal.SIGKILL, signal.SIGTERM):
            kept.at_work()
            redis.Redis.from_url(servers.redis_url).flushall()
            kept.at_work()
            own.restart(servers, "redis", how)
        kept.hand_out()
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected
    assert [process.poll() for process in workers.running.values()] == [None, None]


def test_workers_started_while_the_database_is_away_begin_once_it_is_back(
    servers: Servers, workers: Workers, sae: Sae, dataset: Dataset, tmp_path: Path
) -> None:
    run = new_run(sae, dataset)
    own.end(servers, "postgres", signal.SIGINT)
    workers.start()
    crew.until(lambda: "waiting for it" in (tmp_path / "compute.log").read_text(), workers.log)
    own.begin(servers, "postgres")
    workers.wait_for(lambda: live(run))
