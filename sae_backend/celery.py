"""The Celery application; queues and routes are settings."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

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
