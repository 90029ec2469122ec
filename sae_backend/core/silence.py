"""A limit on how long the hub may send nothing, which its own client does not have: it waits for lists without end, and
asks again and again for a file of which nothing more comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any


class Silent(Exception):
    """Nothing has come from the hub for so long."""


class Silence:
    """Since when nothing has come; a thread of its own ends the hub's client in Rust, which no timeout reaches."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._last = seconds, time.monotonic()
        self._ended = threading.Event()
        self.broken = False
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def left(self) -> float:
        """Seconds that may still pass without a byte."""
        return self._seconds - (time.monotonic() - self._last)

    def came(self) -> None:
        """Something has come that was not there before."""
        self._last = time.monotonic()

    def __enter__(self) -> Silence:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(max(self.left, 0.01)):
            if self.left <= 0:
                self.broken = True
                _xet().abort_xet_session()
                return


_NOW: ContextVar[Silence | None] = ContextVar("silence", default=None)


@contextmanager
def limited(seconds: float) -> Iterator[Silence]:
    """End what is asked of the hub inside with Silent once nothing has come for so long."""
    _use_our_client()
    with Silence(seconds) as silence:
        token = _NOW.set(silence)
        try:
            yield silence
        except Exception as error:
            if silence.broken:  # whatever the client in Rust says of having been ended
                raise Silent from error
            raise
        finally:
            _NOW.reset(token)


def _xet() -> Any:
    from huggingface_hub.utils import _xet

    return _xet


@cache
def _use_our_client() -> None:
    """Have huggingface_hub make its HTTP clients with a look at each request, once in a process."""
    import huggingface_hub
    from huggingface_hub.utils._http import default_client_factory

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], _shorten]}
        return made

    _xet()
    huggingface_hub.set_client_factory(client)
    huggingface_hub.get_session()  # which takes seconds on a busy machine, as the imports do: they are no silence


def _shorten(request: Any) -> None:
    """Let a request wait no longer than nothing may come; where that is over, it is not even sent."""
    silence = _NOW.get()
    if silence is None:
        return
    if silence.left <= 0:
        raise Silent
    allowed = request.extensions.get("timeout") or {}
    names = ("connect", "read", "write", "pool")
    waits = {name: min(silence.left, allowed.get(name) or silence.left) for name in names}
    request.extensions = {**request.extensions, "timeout": waits}
