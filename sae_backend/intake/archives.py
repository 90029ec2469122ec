"""Archives of strangers, unpacked by what is checked and never by what they claim.

Refused, each with a sentence: names that leave the folder, links and devices, the same name twice, members that
overlap, encryption, more files or folders inside each other than a checkpoint has, and what grows beyond measure.
"""

from __future__ import annotations

import gzip
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sae_backend.intake.errors import IntakeError
from sae_backend.intake.limits import Room, in_words

MAX_ENTRIES = 2000
MAX_DEPTH = 8
MAX_RATIO, FREE = 200, 64 << 20  # bytes unpacked for one packed; so many are let pass whatever they were packed into
PIECE = 1 << 20
MAX_HEADER = 4 << 20  # bytes of a tar's own that are read at once
LOCAL_HEADER = 30
OURS = re.compile(r"(^|/)(data\.pkl|[^/]+\.npy)$")  # members of torch's and NumPy's own zips
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, NotImplementedError, ValueError)


class ArchiveError(IntakeError):
    """An archive that is not unpacked."""


def is_archive(path: Path, name: str) -> bool:
    """Whether a file is a zip or tar of files, judged by its bytes; torch and NumPy write zips that are not."""
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\3\4", b"PK\5\6"):
        return not _is_of_a_library(path, name)
    return head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar"


def _is_of_a_library(path: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(OURS.search(member) for member in archive.namelist())
    except BROKEN as error:
        raise ArchiveError(f"{name} is a damaged zip archive or torch file: send it again") from error


def unpack(path: Path, name: str, into: Path, limit: int) -> None:
    """Unpack into a folder, at most `limit` bytes."""
    into.mkdir(parents=True, exist_ok=True)
    budget = Budget(name, min(limit, FREE + MAX_RATIO * path.stat().st_size), limit, Room(into))
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        (_unzip if zipped else _untar)(path, into, budget)
    except ArchiveError:
        raise
    except BROKEN as error:
        raise ArchiveError(
            f"{name} is damaged or no archive that this reads ({_first(error)}): pack it again"
        ) from error
    tidy(into)
    if not any(path.is_file() for path in into.rglob("*")):
        raise ArchiveError(f"{name} has no files in it: pack the folder of one SAE")


class Budget:
    """What one archive may still become."""

    def __init__(self, name: str, most: int, limit: int, room: Room) -> None:
        self.name, self.most, self.limit, self.room = name, most, limit, room
        self.left = most
        self.names: set[str] = set()

    def admit(self, member: str) -> str:
        """The checked name of one member; ArchiveError where it may not be."""
        if len(self.names) >= MAX_ENTRIES:
            raise self.refusal(f"has more than {MAX_ENTRIES:,} entries: pack the folder of one SAE")
        safe = self._checked(member)
        if safe.casefold() in self.names:
            raise self.refusal(f"has two members called {shown(safe)}: keep one of them")
        self.names.add(safe.casefold())
        return safe

    def _checked(self, member: str) -> str:
        parts = member.rstrip("/").split("/")
        if parts[0] == "." and len(parts) > 1:  # tar packs . so
            parts = parts[1:]
        climbs = member.startswith(("/", "\\")) or "\\" in member or ":" in parts[0] or "\0" in member
        if climbs or any(part in ("", "..", ".") for part in parts) or any(len(part) > 200 for part in parts):
            raise self.refusal(f"has a member called {shown(member)}, which is no plain relative path: pack it again")
        if len(parts) > MAX_DEPTH:
            raise self.refusal(f"has folders more than {MAX_DEPTH} deep: pack the folder of one SAE")
        return "/".join(parts)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0 and self.most < self.limit:
            raise self.refusal(f"grows to more than {MAX_RATIO} times its size, which no weights do: send the files")
        if self.left < 0:
            raise self.refusal(f"grows to more than {in_words(self.limit)}, the most that is allowed here")
        self.room.take(size)

    def refusal(self, why: str) -> ArchiveError:
        return ArchiveError(f"{self.name} {why}")


def shown(name: str) -> str:
    """A stranger's name in a sentence."""
    return ascii(name[:80])


def _unzip(path: Path, into: Path, budget: Budget) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len(members) > MAX_ENTRIES:
            raise budget.refusal(f"has more than {MAX_ENTRIES:,} entries: pack the folder of one SAE")
        _refuse_overlap(members, archive.start_dir, budget)
        for member in members:
            safe = budget.admit(_zip_name(member, budget))
            if not member.is_dir():
                with archive.open(member) as packed:
                    _write(packed, into / safe, budget)


def _zip_name(member: zipfile.ZipInfo, budget: Budget) -> str:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise budget.refusal(f"has {shown(member.filename)}, which is a link or device: pack plain files")
    if member.flag_bits & 1:
        raise budget.refusal("is encrypted: pack it without a password")
    return member.orig_filename


def _refuse_overlap(members: list[zipfile.ZipInfo], end: int, budget: Budget) -> None:
    """Members must lie one after the other, as every packer writes them."""
    past = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < past:
            raise budget.refusal("has members that overlap: pack it again")
        past = member.header_offset + LOCAL_HEADER + len(member.orig_filename) + member.compress_size
    if past > end:
        raise budget.refusal("has members that overlap: pack it again")


def _untar(path: Path, into: Path, budget: Budget) -> None:
    for archive, member in _members(path):
        if member.isdir():
            if member.name.strip("./"):
                budget.admit(member.name)
            continue
        if not member.isreg() or member.issparse():
            raise budget.refusal(f"has {shown(member.name)}, which is a link, device or sparse file: pack plain files")
        if member.size > budget.left:
            budget.spend(member.size)
        packed = archive.extractfile(member)
        assert packed is not None
        _write(packed, into / budget.admit(member.name), budget)


def _members(path: Path) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        plain: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        with tarfile.open(fileobj=Bounded(plain), mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members.clear()  # or it would keep millions
                yield archive, member


class Bounded:
    """A file that gives at most a few megabytes at once: tar's extended headers say themselves how long they are."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"it has a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()


def _write(packed: IO[bytes], target: Path, budget: Budget) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as out:
            while piece := packed.read(PIECE):
                budget.spend(len(piece))
                out.write(piece)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise budget.refusal(f"has a file and a folder called {shown(target.name)}: pack it again") from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def tidy(folder: Path) -> None:
    """Remove what packers of some systems add."""
    for junk in ("__MACOSX",):
        shutil.rmtree(folder / junk, ignore_errors=True)
    for path in [*folder.rglob(".DS_Store"), *folder.rglob("._*")]:
        path.unlink(missing_ok=True)
