"""What a worker reads of an import: its files under their own names in a folder of this host, archives unpacked."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from sae_backend import storage
from sae_backend.intake import archives, limits
from sae_backend.intake.errors import Damaged, Gone
from sae_backend.intake.names import cleaned
from sae_backend.intake.receiving import folder
from sae_backend.models import SaeImport, UploadFile

UNPACKED = "unpacked"


def unpacked(pk: int) -> Path:
    """Where this host lays out an import's files while it reads them."""
    return settings.VAR_DIR / UNPACKED / str(pk)


@contextmanager
def source_of(row: SaeImport) -> Iterator[Path]:
    """The file or folder to import, on this host."""
    shared = storage.current()
    files = list(row.files.filter(complete=True, kept=True).order_by("pk"))
    if files:
        with _laid_out(row, files) as root:
            yield root
    elif shared.shared and shared.names(folder(row)):  # given by import_sae on another host
        with shared.reading(folder(row)) as here:
            yield here / Path(row.source).name
    elif row.from_hub or not row.source:
        raise Gone("the files of this import are not here any more: begin another one")
    else:
        yield Path(row.source)


@contextmanager
def _laid_out(row: SaeImport, files: list[UploadFile]) -> Iterator[Path]:
    root = unpacked(row.pk)
    shutil.rmtree(root, ignore_errors=True)  # of a worker that was killed
    root.mkdir(parents=True)
    try:
        with storage.current().reading(folder(row), [str(file.key) for file in files]) as here:
            for file in files:
                _lay(file, here / str(file.key), root, alone=len(files) == 1)
            yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _lay(file: UploadFile, here: Path, root: Path, alone: bool) -> None:
    """Put one file where its name says, in place; an archive's content beside it."""
    _compare(file, here)
    target = root / cleaned(file.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if archives.is_archive(here, file.name):
        into = root if alone else target.parent / target.name.split(".")[0]
        limits.check_room(root, file.size)
        archives.unpack(here, file.name, into, settings.UPLOAD_MAX_BYTES - _size(root))
    else:
        os.symlink(here, target)


def _size(root: Path) -> int:
    """Bytes that the archives before have become: all of an import share its limit."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _compare(file: UploadFile, here: Path) -> None:
    """Read the file once as it arrived; refuse one that is not what its sender says."""
    if not file.sha256:
        with here.open("rb") as opened:
            file.sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        UploadFile.objects.filter(pk=file.pk).update(sha256=file.sha256)
    if file.expected_sha256 and file.sha256 != file.expected_sha256:
        raise Damaged(
            f"{file.name} arrived with the SHA-256 {file.sha256}, but {file.expected_sha256} was announced: "
            "delete it here and send it again"
        )
