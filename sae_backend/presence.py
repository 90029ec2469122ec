"""Which workers there are and what they are at, for people: a row each, written from a thread of its own.

Nothing is decided by it. A row that is written late or not at all costs nobody any work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db import Error, connections
from django.db.models.functions import Now

from sae_backend.models import Worker

FORGOTTEN = timedelta(days=1)  # without a sign
WRITTEN = ("queues", "task", "target", "since", "memory", "started_at", "seen_at")
logger = logging.getLogger(__name__)


@dataclass
class _Present:
    """This process, as long as it is a worker."""

    name: str
    queues: str
    started: float = field(default_factory=time.monotonic)
    work: tuple[str, int | None, float] = ("", None, 0.0)  # task, its target, when it was taken up
    changed: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    thread: threading.Thread | None = None


_present: list[_Present] = []


def begin(name: str, queues: Iterable[str]) -> None:
    """List this process as a worker until it ends."""
    present = _Present(name, ",".join(queues))
    _present[:] = [present]
    present.thread = threading.Thread(target=_keep, args=(present,), daemon=True, name="presence")
    present.thread.start()


def at(task: str, target: int | None) -> None:
    """Take what this worker is at; "" is idle."""
    for present in _present:
        present.work = (task, target, time.monotonic())
        present.changed.set()


def end() -> threading.Thread | None:
    """Take this worker from the list; the thread that does so."""
    present = _present.pop() if _present else None
    if present is None:
        return None
    present.ended = True
    present.changed.set()
    return present.thread


def forget_gone() -> None:
    """Delete those that gave no sign for a day."""
    Worker.objects.filter(seen_at__lt=Now() - FORGOTTEN).delete()


def _keep(present: _Present) -> None:
    while not present.ended:
        present.changed.clear()
        _try(_write, present)
        if not present.ended:
            present.changed.wait(settings.WORKER_HEARTBEAT_SECONDS)
    _try(_erase, present)


def _try(what: Callable[[_Present], object], present: _Present) -> None:
    try:
        what(present)
    except Error as error:
        logger.info("the database took no word of this worker, the next follows: %s", error)
    connections.close_all()


def _erase(present: _Present) -> None:
    Worker.objects.filter(name=present.name).delete()


def _write(present: _Present) -> None:
    task, target, begun = present.work
    now = time.monotonic()
    row = Worker(
        name=present.name, queues=present.queues, task=task, target=target, memory=_memory(), seen_at=Now(),
        since=Now() - timedelta(seconds=now - begun) if task else None,
        started_at=Now() - timedelta(seconds=now - present.started),
    )  # fmt: skip
    Worker.objects.bulk_create([row], update_conflicts=True, unique_fields=["name"], update_fields=list(WRITTEN))


def _memory() -> int | None:
    """Bytes of this process in memory, where the kernel says so."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return None
