"""Disks that are full: a sentence that says so, nothing lost, and the run goes on once there is room again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_backend import launch, queue, spool, storage
from sae_backend.embedded import UNSHARE, Account, Servers
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae
from tests.backend import demo, synthetic
from tests.e2e import own, small_disk
from tests.e2e.crew import (
    CONTEXTS,
    LATENTS,
    Kept,
    Workers,
    done,
    failed,
    held,
    inside_copy,
    live,
    new_run,
    undisturbed,
)
from tests.e2e.small_disk import END_WITH_PARENT, SmallDisk

pytestmark = pytest.mark.django_db(transaction=True)
RESUME = "import django; django.setup(); from sae_backend import queue; print(queue.resume({pk}))"


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> None:
    if not small_disk.possible(tmp_path_factory.mktemp("mounts")):
        pytest.skip("no user namespaces with mounts here (sysctl user.max_user_namespaces, or a container's profile)")


@pytest.fixture
def store(settings: Any, tmp_path: Path) -> Path:
    """Shared files of this test alone."""
    settings.STORE_URL = str(tmp_path / "store")
    return tmp_path / "store"


def kept(run: Run) -> dict[int, int]:
    """What is done, and in which claim."""
    return {shard.pk: shard.attempts for shard in run.shards.filter(state=RunShard.State.DONE)}


def names(run: Run, kind: str = CONTEXTS) -> set[str]:
    return {spool.name(shard) for shard in run.shards.filter(kind=kind, state=RunShard.State.DONE)}


def resumed_by(workers: Workers, prefix: tuple[str, ...], run: Run) -> bool:
    """Resume from a process that sees what the workers see."""
    command = [*prefix, sys.executable, "-c", RESUME.format(pk=run.pk)]
    env = {**workers.environment, "DJANGO_SETTINGS_MODULE": "sae_backend.settings"}
    answer = subprocess.run(command, env=env, cwd=launch.ROOT, capture_output=True, text=True, check=True)
    return answer.stdout.splitlines()[-1] == "True"


def test_a_full_spool_fails_the_run_with_a_sentence_and_it_goes_on_once_there_is_room(
    mounts: None, store: Path, workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STORE_URL"] = str(store)
    run = new_run(sae, dataset)
    (store / spool.FOLDER).mkdir(exist_ok=True)
    with SmallDisk(store / spool.FOLDER, megabytes=8) as disk:
        disk.fill(leave=150_000)  # a shard's file has 20 to 30 thousand
        for name in ("one", "two"):
            workers.start(name, *disk.prefix)
        workers.wait_for(lambda: failed(run), failing=True)
        workers.wait_for(lambda: not held(run) and queue.waiting() == 0, failing=True)
        assert run.error.startswith(f"{store} cannot be used: ") and "No space left on device" in run.error
        assert "It needs free space" in run.error
        before = kept(run)
        assert set(os.listdir(disk.inside / str(run.pk))) == names(run) and 0 < len(before) < 12
        disk.make_room()
        assert resumed_by(workers, disk.prefix, run)
        workers.wait_for(lambda: live(run))
        assert synthetic.digest(run) == expected
        assert before.items() <= kept(run).items()  # none of them was done again
        workers.stop()


def test_a_file_that_may_not_grow_fails_the_run_with_a_sentence_and_it_goes_on_elsewhere(
    workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    """The same fault without any right: the kernel refuses what goes beyond a process' limit."""
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset, shard_contexts=48)
    workers.start("small", "prlimit", "--fsize=100000")
    workers.wait_for(lambda: failed(run), failing=True)
    assert "File too large" in run.error and "It needs free space" in run.error
    assert storage.current().names(spool.folder(run.pk)) == set()
    workers.stop()
    workers.start("large")
    assert queue.resume(run.pk)
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected


@pytest.fixture
def servers(mounts: None, transactional_db: None) -> Iterator[Servers]:
    with own.servers() as up:
        yield up


def test_a_full_database_fails_the_run_with_a_sentence_and_it_goes_on_once_there_is_room(
    servers: Servers, tmp_path: Path
) -> None:
    lm: LanguageModel = demo.a_language_model()
    dataset, sae = demo.a_dataset(lm), demo.a_sae(lm)
    expected = undisturbed(sae, dataset)
    own.end(servers, "postgres", signal.SIGINT)
    with SmallDisk(servers.pg / "base", megabytes=192) as disk:
        servers.account = Account(os.geteuid(), prefix=(*disk.prefix, *UNSHARE, *END_WITH_PARENT))
        own.begin(servers, "postgres")
        workers = Workers({**os.environ, **servers.environment()}, tmp_path)
        try:
            _fill_while_latents_are_loaded(disk, workers, new_run(sae, dataset, shard_latents=64), expected)
        finally:
            workers.stop()
            servers.stop()


def _fill_while_latents_are_loaded(disk: SmallDisk, workers: Workers, run: Run, expected: list[str]) -> None:
    rest = Kept(workers, run, LATENTS, stock=4)
    for name in ("one", "two"):
        workers.start(name)
    workers.wait_for(lambda: done(run, LATENTS) >= 2)
    with inside_copy(workers, run, rest):
        disk.fill()
    workers.wait_for(lambda: failed(run), failing=True)
    assert run.error.startswith("PostgreSQL cannot write: ") and "No space left on device" in run.error
    assert "It needs free space for its data; make some, then resume the run" in run.error
    disk.make_room()
    before = kept(run)
    assert queue.resume(run.pk)
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected
    assert before.items() <= kept(run).items()
