"""Looks after runs from inside a worker: claims of a dead predecessor, and work that nobody does any more."""

from __future__ import annotations

import logging
import threading
import time

from django.conf import settings
from django.db import connections

from sae_backend import cleaning, identity, queue

logger = logging.getLogger(__name__)


def begin(worker: str) -> None:
    """Take over under a Celery node's name: a name is one process, so whoever had it before is gone."""
    identity.be(worker)
    taken = queue.take_over(worker)
    if taken:
        logger.warning("took back %s shards of a worker of this name that ended", taken)
    queue.sweep(0.0)
    threading.Thread(target=_watch, daemon=True, name="supervision").start()


def _watch() -> None:
    while True:
        time.sleep(settings.STALLED_SECONDS / 2)
        try:
            queue.sweep(settings.STALLED_SECONDS)
            cleaning.clean()
        except Exception:  # the database or Redis is away; look again later
            logger.warning("cannot look for stalled runs now", exc_info=True)
        finally:
            connections.close_all()
