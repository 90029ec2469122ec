"""The Celery application; queues and routes are settings."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.signals import task_postrun, task_prerun, worker_ready, worker_shutdown, worker_shutting_down

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sae_backend.settings")

app = Celery("sae_backend")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["sae_backend"])


@worker_ready.connect
def supervise(sender: Any, **_: Any) -> None:
    """Once a worker is up: say so; one that computes takes back what its predecessor held, and looks after runs."""
    from sae_backend import presence, supervision

    queues = sorted(app.amqp.queues.consume_from)
    presence.begin(str(sender.hostname), queues)
    if "compute" in queues:
        supervision.begin(str(sender.hostname))


@task_prerun.connect
def taken_up(task: Any, args: Any, **_: Any) -> None:
    from sae_backend import presence

    presence.at(task.name.rpartition(".")[2], next(iter(args), None))


@task_postrun.connect
def put_down(**_: Any) -> None:
    from sae_backend import presence

    presence.at("", None)


@worker_shutting_down.connect
def leave(**_: Any) -> None:
    """A worker that is asked to end leaves its shard at the next report of progress, to whoever comes."""
    from sae_backend import pulse

    pulse.stopping.set()


@worker_shutdown.connect
def gone(**_: Any) -> None:
    """A worker that ends in order is no longer listed."""
    from sae_backend import presence

    if thread := presence.end():
        thread.join(2.0)
