"""Two threads in turn: one computes while the other writes and commits what it computed before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from types import TracebackType
from typing import Self, TypeVar

from django.db import connections

logger = logging.getLogger(__name__)
A = TypeVar("A")


class Turn:
    """A block that one thread at a time is in, and may leave for the next before its end."""

    def __init__(self, lock: Lock) -> None:
        self._lock, self._mine = lock, False

    def pass_on(self) -> None:
        """Let the next one begin; a second time is nothing."""
        if self._mine:
            self._mine = False
            self._lock.release()

    def __enter__(self) -> Self:
        self._lock.acquire()
        self._mine = True
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.pass_on()


def each(items: Iterable[A], work: Callable[[A, Turn], None]) -> None:
    """Do work(item, turn) for every item; the next is asked for and begun once `turn` is passed on.

    An error ends its thread; the other goes on until nothing is left, and then the error is raised.
    """
    coming, lock = iter(items), Lock()

    def go() -> None:
        try:
            while True:
                with Turn(lock) as turn:
                    item = next(coming, None)
                    if item is None:
                        return
                    work(item, turn)
        finally:
            connections.close_all()  # a thread has connections of its own

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(go) for _ in range(2)]
    errors = [error for thread in both if (error := thread.exception()) is not None]
    for error in errors[1:]:
        logger.error("the other thread ended with an error too", exc_info=error)
    if errors:
        raise errors[0]
