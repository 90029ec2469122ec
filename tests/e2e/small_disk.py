"""A file system of a few megabytes that fills up for real: a tmpfs over a directory, in a mount namespace of its own.

Neither root nor a mount of the host is needed, only user namespaces; what shall see it is started through `prefix`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

ENTER = ("nsenter", "--user", "--mount", "--wd=.")
PIECE = 16384  # bytes
END_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")  # entering a namespace has undone the launcher's
MOUNT = 'mount -t tmpfs -o size="$2" small "$1" && cp -a "$1".kept/. "$1" && echo up && exec cat'


class SmallDisk:
    """Over a directory from __enter__ to __exit__, with what the directory held."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self.place, self.size = place, f"{megabytes}m"

    def __enter__(self) -> Self:
        kept = self.place.with_name(f"{self.place.name}.kept")
        shutil.copytree(self.place, kept)
        self._holder = hold(self.place, self.size)
        assert self._holder.stdout is not None and self._holder.stdout.readline() == "up\n"
        shutil.rmtree(kept)
        self.prefix = (*ENTER, "--target", str(self._holder.pid), *END_WITH_PARENT)
        self.inside = Path(f"/proc/{self._holder.pid}/root{self.place}")
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.communicate()

    def fill(self, leave: int = 0) -> None:
        """Take all room but about so many bytes; others may write meanwhile."""
        with (self.inside / "filler").open("wb") as file, suppress(OSError):  # ENOSPC
            while (free := self._free() - leave) > 0:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, min(free, PIECE))

    def _free(self) -> int:
        there = os.statvfs(self.inside)
        return there.f_bavail * there.f_frsize

    def make_room(self) -> None:
        (self.inside / "filler").unlink()


def hold(place: Path, size: str) -> subprocess.Popen[str]:
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", str(place), size]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def possible(scratch: Path) -> bool:
    """Whether this machine lets its users have mounts of their own."""
    (scratch / "place").mkdir()
    (scratch / "place.kept").mkdir()
    try:
        with hold(scratch / "place", "1m") as holder:
            return holder.communicate()[0] == "up\n"
    except FileNotFoundError:
        return False
