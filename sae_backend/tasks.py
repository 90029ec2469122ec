"""Celery tasks: an id in, nothing out. Jobs are imported inside the bodies, so that queueing loads no torch.

While the database is away a task waits and is tried again, for as long as it takes.
"""

from __future__ import annotations

from typing import Any

from sae_backend import faults
from sae_backend.celery import app

AGAIN: dict[str, Any] = {
    "autoretry_for": faults.DATABASE, "max_retries": None, "retry_backoff": 1, "retry_backoff_max": 10
}  # fmt: skip


@app.task(**AGAIN)
def check_import(import_id: int) -> None:
    from sae_backend.intake import checking

    checking.check_import(import_id)


@app.task(**AGAIN)
def import_sae(import_id: int) -> None:
    from sae_backend import jobs

    jobs.import_sae(import_id)


@app.task(**AGAIN)
def add_source(addition_id: int) -> None:
    from sae_backend.additions import worker

    worker.add(addition_id)


@app.task(**AGAIN)
def compare_saes(comparison_id: int) -> None:
    from sae_backend.comparisons import worker

    worker.compare(comparison_id)


@app.task(**AGAIN)
def compute_contexts(run_id: int, index: int) -> None:
    from sae_backend import jobs

    jobs.compute_contexts_onward(run_id, index)


@app.task(**AGAIN)
def load_latents(run_id: int, index: int) -> None:
    from sae_backend import jobs

    jobs.load_latents_onward(run_id, index)


@app.task(**AGAIN)
def clean() -> None:
    from sae_backend import cleaning

    cleaning.clean()


@app.task(**AGAIN)
def align_series(sae_id: int) -> None:
    from sae_backend import aligning

    aligning.align(sae_id)


@app.task(**AGAIN)
def publish_run(run_id: int) -> None:
    from sae_backend import jobs

    jobs.publish(run_id)
