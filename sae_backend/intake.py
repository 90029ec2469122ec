"""Checkpoints on their way in: from the host of who asks to the worker that imports them, wherever it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import transaction

from sae_backend import storage, tasks
from sae_backend.models import Dataset, LanguageModel, SaeImport

FOLDER = "imports"


class IntakeError(Exception):
    """Files that cannot be given to a worker, with a sentence that says what to do."""


def ask(name: str, source: Path, lm: LanguageModel, dataset: Dataset | None, options: dict[str, Any]) -> SaeImport:
    """Queue the import of a file or folder of this host; where workers are on others, they are given its files."""
    with transaction.atomic():  # nobody begins before the files are there
        row = SaeImport.objects.create(name=name, source=str(source), lm=lm, dataset=dataset, options=options)
        shared = storage.current()
        if shared.shared:
            _share(shared, f"{FOLDER}/{row.pk}", source)
        transaction.on_commit(lambda: tasks.import_sae.delay(row.pk))
    return row


def _share(shared: storage.Storage, folder: str, source: Path) -> None:
    from sae_backend.core.checkpoints import CheckpointError, list_files  # torch, which who asks may do without

    inside = f"{source.name}/" if source.is_dir() else ""
    try:
        shared.keep(folder, {f"{inside}{name}": path for name, path in list_files(source).items()})
    except CheckpointError as error:
        raise IntakeError(str(error)) from error
    except OSError as error:
        raise IntakeError(shared.explain(error)) from error


@contextmanager
def source_of(row: SaeImport) -> Iterator[Path]:
    """The file or folder to import, on this host."""
    shared = storage.current()
    if shared.shared and shared.names(f"{FOLDER}/{row.pk}"):
        with shared.reading(f"{FOLDER}/{row.pk}") as here:
            yield here / Path(row.source).name
    else:
        yield Path(row.source)


def clean() -> list[int]:
    """Delete the files of imports that have ended; which imports."""
    there = [int(each) for each in storage.current().folders(FOLDER) if each.isdigit()]
    over = (SaeImport.State.DONE, SaeImport.State.FAILED)
    ended = list(SaeImport.objects.filter(pk__in=there, state__in=over).order_by("pk").values_list("pk", flat=True))
    for pk in ended:
        storage.current().remove(f"{FOLDER}/{pk}")
    return ended
