"""Any number of worker processes gives the same pages, and one on another host needs three addresses, nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import call_command

from sae_backend import jobs, launch, spool, storage
from sae_backend.models import Dataset, Run, Sae, SaeImport
from tests import buckets
from tests.backend import demo, messages, synthetic
from tests.e2e import crew

pytestmark = pytest.mark.django_db(transaction=True)
THREADS = ("1", "2", "3", "1")  # of each worker
OF_THE_RUN = ("seconds", "device")  # in a summary: how it was computed


def figures(run: Run) -> dict[str, Any]:
    """What the SAE's page says of it as a whole."""
    run.refresh_from_db()
    return {name: value for name, value in run.summary.items() if name not in (*OF_THE_RUN, "k_curve")}


def curve(run: Run) -> list[list[float]]:
    """Its FVU against k: sums in float64 that are added up in the order in which a run is cut."""
    return run.summary["k_curve"]["points"]


def test_one_two_and_four_workers_give_the_same_pages(workers: crew.Workers, sae: Sae, dataset: Dataset) -> None:
    alone = {dtype: computed_here(sae, dataset, dtype=dtype) for dtype in ("float32", "bfloat16")}
    workers.environment["STALLED_SECONDS"] = "600"  # no claim runs out because a machine is slow
    for n in (1, 2, 4):
        for i in range(len(workers.running), n):
            workers.environment["OMP_NUM_THREADS"] = THREADS[i]
            workers.start(f"worker-{i}")
        workers.ready(n)
        for dtype, expected in alone.items():
            run = computed_by(workers, sae, dataset, dtype)
            assert synthetic.digest(run) == synthetic.digest(expected), (n, dtype)
            assert figures(run) == figures(expected), (n, dtype)
            assert np.allclose(curve(run), curve(expected), rtol=1e-9, atol=0), (n, dtype)


def computed_by(workers: crew.Workers, sae: Sae, dataset: Dataset, dtype: str) -> Run:
    """A run of which every worker does both contexts and latents: nobody gets to the end of one before all have one."""
    run = crew.new_run(sae, dataset, dtype=dtype)
    with crew.uncopied(run):
        with crew.unread(dataset):
            workers.wait_for(lambda: at(run, crew.CONTEXTS) == set(workers.running))
        workers.wait_for(lambda: at(run, crew.LATENTS) == set(workers.running))
    workers.wait_for(lambda: crew.live(run))
    return run


def at(run: Run, kind: str) -> set[str]:
    """Workers that hold a shard of a kind."""
    return {shard.worker.partition("@")[0] for shard in crew.held(run) if shard.kind == kind}


def computed_here(sae: Sae, dataset: Dataset, **options: Any) -> Run:
    """A run by this process alone."""
    run = jobs.new_run(sae, dataset, **{**demo.QUICK, **options})
    messages.forget()
    crew.carry_out(run)
    return run


@pytest.fixture(params=["directory", "bucket"])
def shared(
    request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[dict[str, str]]:
    """Storage for several hosts: what a worker is told to find it."""
    settings.COMPUTE_DTYPE, settings.CACHE_DIR = "float32", tmp_path / "cache of this host"
    if request.param == "directory":
        settings.STORE_URL = str(tmp_path / "network file system")
        yield {"STORE_URL": settings.STORE_URL}
        return
    with buckets.service(tmp_path) as service:
        for name, value in service.environment().items():
            monkeypatch.setenv(name, value)
        settings.STORE_URL = f"s3://{buckets.BUCKET}/{buckets.PREFIX}"
        yield {"STORE_URL": settings.STORE_URL, **service.environment()}


def ask_for_a_run(home: Path) -> SaeImport:
    """Add a language model, text and an SAE on this host, as people do in its shell; then it has none of the files."""
    shutil.copytree(demo.DEMO / "model", home / "model")
    shutil.copytree(demo.SAE, home / "sae")
    (home / "text").mkdir()
    for i in range(4):
        (home / "text" / f"{i}.py").write_text(demo.text())
    call_command("add_model", "the model", home / "model")
    size = {"ctx_len": demo.CTX_LEN, "max_tokens": demo.CONTEXTS * demo.CTX_LEN}
    call_command("add_dataset", "source", home / "text", model="the model", **size)
    call_command("import_sae", home / "sae", model="the model", dataset="source", no_wait=True)
    shutil.rmtree(home)
    return SaeImport.objects.get()


def test_a_worker_on_another_host_needs_the_database_redis_and_the_shared_files_alone(
    shared: dict[str, str], workers: crew.Workers, tmp_path: Path
) -> None:
    row = ask_for_a_run(tmp_path / "home")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = {"VAR_DIR": str(elsewhere / "var"), "HOME": str(elsewhere), "PYTHONPATH": str(launch.ROOT)}
    workers.environment |= {**shared, **own}
    workers.start("far", "env", f"--chdir={elsewhere}")
    workers.wait_for(lambda: SaeImport.objects.filter(pk=row.pk).exclude(run=None, error=""))
    row.refresh_from_db()
    assert row.run is not None, row.error
    workers.wait_for(lambda: crew.live(row.run))
    # the worker cleans up once it has nothing to do
    workers.wait_for(lambda: not storage.current().folders("imports") and not spool.runs())
    workers.stop()
    assert spool.runs() == set()
    assert {shard.worker.partition("@")[0] for shard in row.run.shards.all()} == {"far"}
    here = computed_here(row.run.sae, row.run.dataset)  # from the same files, which this host has lost too
    assert synthetic.digest(here) == synthetic.digest(row.run)
