"""The name under which this process claims work."""

from __future__ import annotations

import os
import socket

_name: list[str] = []


def be(name: str) -> None:
    """Take a Celery node's name for the life of this process."""
    _name[:] = [name]


def worker() -> str:
    """The Celery node this process is, or host and process where a job is run by hand."""
    return _name[0] if _name else f"{socket.gethostname()}-{os.getpid()}"
