"""The Celery application; queues and routes are settings."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready, worker_shutting_down

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sae_backend.settings")

app = Celery("sae_backend")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["sae_backend"])


@worker_ready.connect
def supervise(sender: Any, **_: Any) -> None:
    """Once a worker that computes is up: take back what its predecessor held, and look after stalled runs."""
    if "compute" in app.amqp.queues.consume_from:
        from sae_backend import supervision

        supervision.begin(str(sender.hostname))


@worker_shutting_down.connect
def leave(**_: Any) -> None:
    """A worker that is asked to end leaves its shard at the next report of progress, to whoever comes."""
    from sae_backend import pulse

    pulse.stopping.set()
