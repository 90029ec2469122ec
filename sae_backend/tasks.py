"""Celery tasks: an id in, nothing out. Jobs are imported inside the bodies, so that queueing loads no torch."""

from __future__ import annotations

from sae_backend.celery import app


@app.task
def import_sae(import_id: int) -> None:
    from sae_backend import jobs

    jobs.import_sae(import_id)


@app.task
def compute_contexts(run_id: int, index: int) -> None:
    from sae_backend import jobs

    jobs.compute_contexts(run_id, index)


@app.task
def load_latents(run_id: int, index: int) -> None:
    from sae_backend import jobs

    jobs.load_latents(run_id, index)


@app.task
def publish_run(run_id: int) -> None:
    from sae_backend import jobs

    jobs.publish(run_id)
