"""A worker lists itself, what it is at, and leaves when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from sae_backend import presence
from sae_backend.models import Worker
from tests.e2e.crew import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def ended(settings: Any) -> Iterator[None]:
    settings.WORKER_HEARTBEAT_SECONDS = 0.05
    yield
    thread = presence.end()
    if thread is not None:
        thread.join()


def so(condition: Callable[[], object]) -> None:
    until(condition, lambda: str(list(Worker.objects.values())))


def test_a_worker_says_what_it_is_at_and_is_gone_when_it_ends() -> None:
    presence.begin("gpu-0@lab", ["compute", "interactive"])
    so(Worker.objects.filter(name="gpu-0@lab", queues="compute,interactive", task="", since=None, memory__gt=0).exists)
    presence.at("compute_contexts", 7)
    so(Worker.objects.filter(task="compute_contexts", target=7, since__isnull=False).exists)
    before = Worker.objects.get().seen_at
    so(Worker.objects.filter(seen_at__gt=before).exists)
    presence.at("", None)
    so(Worker.objects.filter(task="", target=None, since=None).exists)
    thread = presence.end()
    assert thread is not None
    thread.join()
    assert not Worker.objects.exists()


def test_a_worker_of_the_same_name_takes_its_row() -> None:
    long_ago = timezone.now() - timedelta(hours=3)
    Worker.objects.create(name="gpu-0@lab", queues="x", task="clean", started_at=long_ago, seen_at=long_ago)
    presence.begin("gpu-0@lab", ["compute"])
    so(Worker.objects.filter(queues="compute", task="", seen_at__gt=long_ago, started_at__gt=long_ago).exists)
    assert Worker.objects.count() == 1


def test_workers_that_are_gone_for_a_day_are_forgotten() -> None:
    for name, hours in (("old", 25), ("new", 23)):
        at = timezone.now() - timedelta(hours=hours)
        Worker.objects.create(name=name, queues="compute", started_at=at, seen_at=at)
    presence.forget_gone()
    assert Worker.objects.get().name == "new"
