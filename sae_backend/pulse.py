"""Signs of life that a worker gives from a thread of its own while it computes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from django.conf import settings
from django.db import Error, connections

from sae_backend import faults

logger = logging.getLogger(__name__)
stopping = threading.Event()  # this process was asked to end


class Abandoned(Exception):
    """The work at hand has to be left: another does it, nobody wants it any more, or this process ends."""


class Pulse:
    """Beats until its block ends; a beat that answers False says that the work has to be left."""

    def __init__(self, beat: Callable[[int], bool]) -> None:
        self._beat, self._done = beat, 0
        self._lost, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def report(self, done: int) -> None:
        """Take what is done so far; raise Abandoned where going on is of no use."""
        self._done = done
        self.check()

    def check(self) -> None:
        """Raise Abandoned where going on is of no use."""
        if self._lost.is_set() or stopping.is_set():
            raise Abandoned

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(settings.WORKER_HEARTBEAT_SECONDS):
            try:
                if not self._beat(self._done):
                    self._lost.set()
            except Error as error:
                logger.warning("the database took no sign of life, the next follows: %s", error)
                faults.leave_broken_connection()
        connections.close_all()
