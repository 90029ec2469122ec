"""PostgreSQL and Redis that are stopped, killed and emptied under workers: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from django.db import connection

from sae_backend.embedded import Servers
from sae_backend.models import Dataset, LanguageModel, Run, Sae
from tests.backend import demo, synthetic
from tests.e2e import crew, own
from tests.e2e.crew import CONTEXTS, LATENTS, Workers, done, held, live, new_run, undisturbed

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


def at_work(workers: Workers, run: Run, kind: str) -> None:
    """Wait until something more of a run is done and a worker is at the next."""
    before = done(run)
    workers.wait_for(lambda: done(run) > before and [s for s in held(run) if s.kind == kind])


@contextmanager
def inside_copy(workers: Workers, run: Run) -> Iterator[None]:
    """Once a worker's COPY is half done: the second table is held against it until the server ends."""
    other = connection.copy()
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute(f"lock table latent_page_r{run.pk} in share mode")
    waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like 'copy latent_page_%'"
    workers.wait_for(lambda: synthetic.query(waits))
    yield
    other.close()


def test_postgresql_can_be_stopped_and_killed_in_every_stage(
    servers: Servers, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset, **MANY)
    for name in ("one", "two"):
        workers.start(name)
    for how in (signal.SIGINT, signal.SIGKILL):
        at_work(workers, run, CONTEXTS)
        own.restart(servers, "postgres", how)
    for how in (signal.SIGKILL, signal.SIGINT):
        with inside_copy(workers, run):
            own.restart(servers, "postgres", how)
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected
    assert [process.poll() for process in workers.running.values()] == [None, None]


def test_redis_can_be_emptied_stopped_and_killed_in_every_stage(
    servers: Servers, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset, **MANY)
    for name in ("one", "two"):
        workers.start(name)
    for kind in (CONTEXTS, LATENTS):
        for how in (signal.SIGKILL, signal.SIGTERM):
            at_work(workers, run, kind)
            redis.Redis.from_url(servers.redis_url).flushall()
            at_work(workers, run, kind)
            own.restart(servers, "redis", how)
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
