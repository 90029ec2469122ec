"""Copies of shared files on this host, for any number of its processes: bounded, the least recently used go first.

A copy carries the time of its upload as its own, so that a file written again under the same name is fetched again.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

LOCKS, DEPTH = ".locks", 2  # a folder is called kind/name, such as spool/12


class Stored(NamedTuple):
    """A shared file as its store lists it."""

    size: int
    modified: int  # second of its upload


class Cache:
    """A folder of this host that holds about `limit` bytes, and what is in use."""

    def __init__(self, root: Path, limit: float) -> None:
        self.root, self.limit = root, limit

    def has(self, name: str, stored: Stored) -> bool:
        """Whether this very file is here; if so it counts as used now."""
        path = self.root / name
        with suppress(FileNotFoundError):
            here = path.stat()
            if Stored(here.st_size, int(here.st_mtime)) == stored:
                os.utime(path, (time.time(), stored.modified))
                return True
        return False

    @contextmanager
    def partial(self, name: str) -> Iterator[Path]:
        """A path to write a file to that is to have this name; gone after the block unless it was adopted."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def adopt(self, partial: Path, name: str, stored: Stored) -> None:
        """Give a whole file its name."""
        os.utime(partial, (time.time(), stored.modified))
        partial.replace(self.root / name)

    @contextmanager
    def using(self, folder: str) -> Iterator[None]:
        """Keep a folder's files here meanwhile."""
        with self._lock(folder, fcntl.LOCK_SH):
            yield

    @contextmanager
    def fetching(self, folder: str) -> Iterator[None]:
        """Wait until no other process of this host fetches the folder's files."""
        with self._lock(f"{folder} fetched", fcntl.LOCK_EX):
            yield

    def trim(self) -> None:
        """Delete the least recently used files above the limit, but none of a folder in use."""
        files = sorted(self._files())
        excess = sum(size for _, size, _ in files) - self.limit
        for _, size, path in files:
            if excess > 0:
                folder = "/".join(path.relative_to(self.root).parts[:DEPTH])
                with suppress(BlockingIOError), self._lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    path.unlink(missing_ok=True)
                    excess -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was last used, its size and path; other processes delete meanwhile."""
        for path in self.root.rglob("*"):
            with suppress(FileNotFoundError):
                here = path.stat()
                if stat.S_ISREG(here.st_mode) and path.parent.name != LOCKS:
                    yield here.st_atime, here.st_size, path

    @contextmanager
    def _lock(self, name: str, how: int) -> Iterator[None]:
        """The kernel gives it back when the process ends, however it ends."""
        locks = self.root / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / name.replace("/", " ")).open("ab") as file:
            fcntl.flock(file, how)
            yield
