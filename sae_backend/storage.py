"""The files that workers share: checkpoints, language models and the spool, in a directory or an S3-compatible bucket.

They lie in named folders, such as spool/12. Those of a directory are written and read in place; how a bucket is used
is in bucket.py.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from django.conf import settings


class StorageError(Exception):
    """Shared files that cannot be had, with a sentence that says what to do."""


class Missing(StorageError, FileNotFoundError):
    """Shared files that should be there and are not."""


class Storage(Protocol):
    """Folders called kind/name; a file in them is there whole or not at all."""

    shared: bool  # whether other hosts may compute with it

    def keep(self, folder: str, files: Mapping[str, Path]) -> None:
        """Store copies of these files as a folder, unless it is there; it is complete when this returns."""

    def writing(self, folder: str, name: str) -> AbstractContextManager[Path]:
        """Where on this host to write one file of a folder; it is there for all once the block ends well."""

    def reading(self, folder: str, names: Collection[str] | None = None) -> AbstractContextManager[Path]:
        """The folder on this host, with these files or all. What was opened inside the block stays readable."""

    def names(self, folder: str) -> set[str]:
        """The files that a folder holds; none where there is no such folder."""

    def folders(self, parent: str) -> set[str]:
        """The folders inside a folder."""

    def remove(self, folder: str, names: Collection[str] | None = None) -> None:
        """Delete these files of a folder, or all of it."""

    def explain(self, error: Exception) -> str:
        """Say what to do about a file on this host that cannot be written or read."""


def current() -> Storage:
    """What STORE_URL names; without it, a directory of this machine alone."""
    url = settings.STORE_URL
    if url.startswith("s3://"):
        from sae_backend import bucket  # boto3 takes half a second

        return bucket.of(url, settings.CACHE_DIR, settings.CACHE_GB)
    if "://" in url:
        raise StorageError(f"STORE_URL is {url}; it must be a directory or s3://bucket/prefix")
    return Directory(Path(url).resolve() if url else settings.VAR_DIR / "store", shared=bool(url))


def check(folder: str, where: str, wanted: Collection[str] | None, there: Collection[str]) -> None:
    """Refuse to read a folder of which files are gone."""
    gone = sorted(set(wanted or ()) - set(there))
    if gone or not there:
        what = f"{len(gone)} files, the first {gone[0]}, are gone from {folder}" if gone else f"there is no {folder}"
        raise Missing(
            f"{what} in {where}: do all workers have the same STORE_URL? If they do, it was deleted there; bring it "
            "back, or import or run again what it belongs to"
        )


class Directory:
    """Folders of one directory, on one machine or on a file system that several share."""

    def __init__(self, root: Path, shared: bool) -> None:
        self.root, self.shared = root, shared

    def keep(self, folder: str, files: Mapping[str, Path]) -> None:
        target = self.root / folder
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        if target.exists():
            return
        try:
            for name, source in files.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, partial / name)
            with suppress(FileExistsError):  # another process was first
                partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def writing(self, folder: str, name: str) -> Iterator[Path]:
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        yield self.root / folder / name

    @contextmanager
    def reading(self, folder: str, names: Collection[str] | None = None) -> Iterator[Path]:
        check(folder, str(self.root), names, self.names(folder))
        yield self.root / folder

    def names(self, folder: str) -> set[str]:
        root = self.root / folder
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    def folders(self, parent: str) -> set[str]:
        return {path.name for path in (self.root / parent).glob("[!.]*") if path.is_dir()}

    def remove(self, folder: str, names: Collection[str] | None = None) -> None:
        for name in names or ():
            (self.root / folder / name).unlink(missing_ok=True)
        if names is None:
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def explain(self, error: Exception) -> str:
        return (
            f"{self.root} cannot be used: {error}. It needs free space, and one place that all workers share; "
            "mend that, or set STORE_URL to another directory, and run it again"
        )
