"""Looks after runs from inside a worker: claims of a dead predecessor, and work that nobody does any more."""

from __future__ import annotations

import logging
import threading
import time

from django.conf import settings
from django.db import connection, connections

from sae_backend import cleaning, faults, identity, queue, series

logger = logging.getLogger(__name__)
PATIENCE = 2.0  # seconds between two looks at a database that is away


def begin(worker: str) -> None:
    """Take over under a Celery node's name: a name is one process, so whoever had it before is gone."""
    identity.be(worker)
    while not _taken_over(worker):  # before the first task: later, what is held in this name is held by us
        time.sleep(PATIENCE)
    threading.Thread(target=_watch, daemon=True, name="supervision").start()


def _taken_over(worker: str) -> bool:
    try:
        if taken := queue.take_over(worker):
            logger.warning("took back %s shards of a worker of this name that ended", taken)
        queue.sweep(0.0)
        series.resend(0.0)
    except ConnectionError as error:  # Redis; what waits there is swept later
        logger.warning("cannot look for stalled runs now: %s", error)
    except faults.DATABASE as error:
        logger.warning("the database is away, waiting for it: %s", error)
        faults.leave_broken_connection()
        return False
    return True


def _watch() -> None:
    calm = True
    while True:
        time.sleep(settings.STALLED_SECONDS / 2)
        calm = _look(calm)


def _look(calm: bool) -> bool:
    """Whether the database and Redis are there; only where they were there before, nobody is silent for their sake."""
    try:
        connection.ensure_connection()
        if calm:
            queue.sweep(settings.STALLED_SECONDS)
            series.resend(settings.STALLED_SECONDS)
            cleaning.clean()
        return True
    except Exception:
        logger.warning("cannot look for stalled runs now", exc_info=True)
        return False
    finally:
        connections.close_all()
