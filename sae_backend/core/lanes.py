"""Threads that each do whole pieces of work, one core each.

A large matrix product uses every core by itself, but NumPy, Numba loops and Python in between use one. So each lane
takes a piece through all its steps, torch on one core, and the lanes together keep the machine busy. On an
accelerator two lanes let one's work on the host hide behind the other's on the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from threading import local
from typing import Any, TypeVar

import torch

A = TypeVar("A")
B = TypeVar("B")


class Lanes:
    """As many lanes as torch may use cores; two on an accelerator, each with a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.n = torch.get_num_threads() if device.type == "cpu" else 2
        self._here = local()
        self._threads = ThreadPoolExecutor(self.n, "lane", torch.set_num_threads, (1,))

    def map(
        self, function: Callable[[A], B], items: Iterable[A], begun: Callable[[], object] = lambda: None
    ) -> Iterator[B]:
        """Results in the order of items; never more than n + 1 of them at once. What waits is dropped on an error.

        `begun` is called once the last item is handed to the lanes: who follows then keeps them busy.
        """
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(self._threads.submit(self._run, function, item))
                if len(waiting) > self.n:
                    yield waiting.popleft().result()
            begun()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:  # nothing may still use the model or the memory when we return
                if not future.cancelled():
                    future.exception()

    def _run(self, function: Callable[[A], B], item: A) -> B:
        with torch.no_grad(), self._stream():
            return function(item)

    def _stream(self) -> Any:
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._here, "stream"):
            self._here.stream = torch.cuda.Stream(self.device)
        return torch.cuda.stream(self._here.stream)


@lru_cache(maxsize=4)
def lanes(device: torch.device) -> Lanes:
    """The process's lanes for a device; threads are kept, for starting them costs torch its own."""
    return Lanes(device)
