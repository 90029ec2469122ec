"""Files as they arrive: pieces appended under a lock, where a later request, or another process, goes on.

What is on the disk is the truth about how much has arrived: a server that is killed in the middle of a piece loses
nothing of what it had written.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from sae_backend import storage
from sae_backend.intake import limits
from sae_backend.intake.errors import (
    OUT_OF_ROOM,
    Busy,
    Damaged,
    Full,
    Gone,
    IntakeError,
    Malformed,
    TooLarge,
    Unavailable,
    WrongOffset,
)
from sae_backend.intake.names import cleaned, collides
from sae_backend.models import SaeImport, UploadFile

FOLDER = "imports"
PIECE = 1 << 16  # bytes read at once: so many are lost at most where a connection falls silent
NOTED_SECONDS = 2.0  # between two notes of how much has arrived
MAX_FILES = 1000
State = SaeImport.State
TAKING = (State.RECEIVING, State.WAITING, State.FAILED)  # files may still be added


class Readable(Protocol):
    """The body of a request, or an open file."""

    def read(self, size: int, /) -> bytes: ...


def folder(row: SaeImport) -> str:
    """Where workers find an import's files, each under its key."""
    return f"{FOLDER}/{row.pk}"


def incoming() -> Path:
    """Where files lie until they are whole: beside the shared ones, so that any web process may go on with them."""
    shared = storage.current()
    return (shared.root if isinstance(shared, storage.Directory) else settings.VAR_DIR) / "incoming"


def staged(file: UploadFile) -> Path:
    return incoming() / str(file.of_id) / str(file.key)


def add_file(row: SaeImport, name: str, size: int, sha256: str = "") -> UploadFile:
    """Make room for a file of an import; IntakeError where it may not come."""
    if size < 0:
        raise Malformed("say how many bytes the file has")
    if sha256 and (len(sha256) != 64 or set(sha256.lower()) - set("0123456789abcdef")):
        raise Malformed("a SHA-256 has 64 hexadecimal digits")
    with transaction.atomic():
        limits.one_by_one(row.owner)
        _refuse_closed(row)
        clean = cleaned(name)
        _refuse_collision(row, clean)
        limits.check_adding(row, size)
        file = UploadFile.objects.create(of=row, name=clean, size=size, expected_sha256=sha256.lower())
    place = staged(file)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        limits.check_room(place.parent, size)
        if size == 0:
            append(file, 0, 0, io.BytesIO())
    except (IntakeError, OSError) as error:
        file.delete()
        raise _explained(error) from error
    return file


def _refuse_closed(row: SaeImport) -> None:
    state = SaeImport.objects.select_for_update().get(pk=row.pk).state
    if row.from_hub or state not in TAKING:
        raise IntakeError(f"this import is {state} and takes no more files: begin another one")
    now = {"state": State.RECEIVING, "report": {}, "error": "", "touched_at": timezone.now()}
    SaeImport.objects.filter(pk=row.pk).update(**now)


def _refuse_collision(row: SaeImport, name: str) -> None:
    names = list(row.files.values_list("name", flat=True))
    if len(names) >= MAX_FILES:
        raise TooLarge(f"one import may have {MAX_FILES:,} files: pack them into an archive")
    if other := collides(name, names):
        raise IntakeError(f"there is a file called {other} already: go on with that one, or delete it first")


def offset(file: UploadFile) -> int:
    """How many bytes of a file are here."""
    if file.complete:
        return file.size
    try:
        return min(file.size, staged(file).stat().st_size)
    except FileNotFoundError:
        return 0


def append(
    file: UploadFile, at: int, length: int | None, body: Readable, algorithm: str = "", digest: bytes = b""
) -> int:
    """Write a piece of `length` bytes at the file's end; how many are there now, however the sender's connection ends.

    With a digest a piece is kept whole or not at all.
    """
    if file.complete:  # a sender that never heard that the last piece came
        if at != file.size or length:
            raise WrongOffset(f"{file.name} is complete, with {file.size:,} bytes")
        return file.size
    if length is not None and length > file.size - at:
        raise TooLarge(f"{file.name} was said to have {file.size:,} bytes; these would make it longer")
    with _held(file) as handle:
        if at != (there := os.fstat(handle).st_size):
            raise WrongOffset(f"{file.name} goes on at byte {there:,}, not at {at:,}")
        there = _take(file, handle, at, length, body, algorithm, digest)
        if there == file.size:
            _hand_over(file)
    return there


@contextmanager
def _held(file: UploadFile) -> Iterator[int]:
    """The staged file, open for this request alone; the kernel gives it back when the process ends."""
    place = staged(file)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_APPEND, 0o640)
    except OSError as error:
        raise _explained(error) from error
    try:
        _lock(file, handle)
        if not UploadFile.objects.filter(pk=file.pk, complete=False, kept=True).exists():
            place.unlink(missing_ok=True)
            raise Gone(f"{file.name} is not being received any more")
        yield handle
    finally:
        os.close(handle)


def _lock(file: UploadFile, handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"another request is writing {file.name}: wait until it ends, then ask how far it came") from None


def _take(
    file: UploadFile, handle: int, at: int, length: int | None, body: Readable, algorithm: str, digest: bytes
) -> int:
    most = file.size - at if length is None else length
    limits.check_room(staged(file).parent, most)
    sums = hashlib.new(algorithm) if algorithm else None
    whole = False
    try:
        whole = _copy(file, handle, at, most, body, sums) == most or length is None
    finally:
        if sums is not None and (not whole or sums.digest() != digest):
            os.ftruncate(handle, at)
        there = os.fstat(handle).st_size
        _note(file, there)
    if sums is not None and there == at and most:
        raise Damaged(f"these bytes of {file.name} are not those that the checksum was made of: send them again")
    return there


def _copy(file: UploadFile, handle: int, at: int, most: int, body: Readable, sums: Any) -> int:
    """Bytes taken until the body, or the connection, ended."""
    taken, noted, room = 0, time.monotonic(), limits.Room(staged(file).parent)
    while taken < most and (piece := _read(body, min(PIECE, most - taken))):
        if sums is not None:
            sums.update(piece)
        room.take(len(piece))
        _write(handle, piece)
        taken += len(piece)
        if time.monotonic() - noted > NOTED_SECONDS:
            noted = time.monotonic()
            _note(file, at + taken)
    return taken


def _read(body: Readable, size: int) -> bytes:
    try:
        return body.read(size)
    except OSError:  # the sender is gone: what came is kept
        return b""


def _write(handle: int, piece: bytes) -> None:
    view = memoryview(piece)
    try:
        while view:
            view = view[os.write(handle, view) :]
    except OSError as error:
        raise _explained(error) from error


def _note(file: UploadFile, received: int) -> None:
    UploadFile.objects.filter(pk=file.pk).update(received=received)
    SaeImport.objects.filter(pk=file.of_id).update(touched_at=timezone.now())


def _hand_over(file: UploadFile) -> None:
    """Give a whole file to the workers; the staged one goes only then."""
    _shared(file, staged(file))
    staged(file).unlink(missing_ok=True)


def _shared(file: UploadFile, place: Path) -> None:
    try:
        _share(file, place)
    except storage.StorageError as error:
        raise Unavailable(f"{error}. What has arrived is kept; send the end of it again") from error
    except OSError as error:
        raise _explained(error) from error
    file.complete, file.received = True, file.size
    UploadFile.objects.filter(pk=file.pk).update(complete=True, received=file.size)


def _share(file: UploadFile, place: Path) -> None:
    with storage.current().writing(folder(file.of), str(file.key)) as there:
        there.unlink(missing_ok=True)  # of an attempt that was cut off
        try:
            os.link(place, there)
        except OSError:  # another file system
            shutil.copyfile(place, there)


def keep_file(row: SaeImport, name: str, path: Path) -> None:
    """Store a file that a worker has brought, as if it had been sent; none after a cancellation, which forgets all."""
    with transaction.atomic():
        if SaeImport.objects.select_for_update().get(pk=row.pk).state == State.CANCELLED:
            raise Gone("this import was cancelled")
        file = UploadFile.objects.create(of=row, name=name[:400], size=path.stat().st_size)
    _shared(file, path)


def _explained(error: Exception) -> Exception:
    if isinstance(error, OSError) and error.errno in OUT_OF_ROOM:
        return Full("the server has no room for this now: what has arrived is kept; go on once there is some")
    if isinstance(error, OSError):
        return Unavailable(f"the server cannot write this file ({error.strerror}): what has arrived is kept; try again")
    return error


def remove_file(file: UploadFile) -> None:
    """Take a file back, whole or not, unless its import reads it."""
    with transaction.atomic():
        _refuse_closed(file.of)
        file.delete()
    with suppress(FileNotFoundError):
        staged(file).unlink()
    if file.complete:
        storage.current().remove(folder(file.of), [str(file.key)])


def remove_bytes(row: SaeImport) -> None:
    """Delete all that has arrived of an import; its rows stay."""
    shutil.rmtree(incoming() / str(row.pk), ignore_errors=True)
    storage.current().remove(folder(row))


def receive(row: SaeImport, name: str, path: Path, sha256: str = "") -> UploadFile:
    """Take a whole file that lies on this host."""
    file = add_file(row, name, path.stat().st_size, sha256)
    if not file.complete:
        _shared(file, path)
    return file
