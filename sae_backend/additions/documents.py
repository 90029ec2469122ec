"""Where a dataset's text comes from: a repository of the hub, a folder, an uploaded file. Files come one by one."""

from __future__ import annotations

import fnmatch
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from sae_backend import storage
from sae_backend.additions import texts, wishes
from sae_backend.additions.folders import allowed_folder
from sae_backend.core import hub, text
from sae_backend.intake import limits
from sae_backend.models import Addition

if TYPE_CHECKING:
    from sae_backend.additions.worker import Held

PREFERRED = (".parquet", ".jsonl", ".ndjson", ".json", ".txt")  # where a repository has its text in several forms
NO_TEXT = re.compile(r"(^|/)(readme|licen[cs]e|requirements|dataset_info|[^/]*config)[^/]*$", re.IGNORECASE)
Given = tuple[text.Documents, dict[str, Any]]


@contextmanager
def of(held: Held) -> Iterator[Given]:
    """The documents, and what has to be kept to read them again."""
    row, field = held.row, held.row.options.get("field") or ""
    recipe = wishes.recipe(row)
    if row.origin == Addition.Origin.UPLOAD:
        with storage.current().reading(f"{texts.TEXTS}/{row.text_sha256}") as here:
            yield text.documents(here / "text", field, name=row.source), recipe
    elif row.origin == Addition.Origin.FOLDER:
        path = Path(row.source) if row.options.get("anywhere") else allowed_folder(row.source)
        yield text.documents(path, field, tuple(row.options.get("suffixes") or ())), recipe
    else:
        with _of_the_hub(held, field) as (found, commit):
            yield found, {**recipe, "revision": commit}


@contextmanager
def _of_the_hub(held: Held, field: str) -> Iterator[tuple[text.Documents, str]]:
    """The files of a repository, each downloaded when its turn comes and deleted when it is read."""
    row = held.row
    held.stage("asking the hub")
    token = bool(row.options.get("token"))
    there = hub.look("dataset", row.source, row.revision, token=token, silence=settings.HUB_SILENCE_SECONDS)
    names = chosen(there.files, row.options, row.source)
    place = settings.VAR_DIR / "incoming"
    place.mkdir(parents=True, exist_ok=True)
    _forget_abandoned(place)
    with tempfile.TemporaryDirectory(prefix=f"hub-{row.pk}-", dir=place) as folder:
        yield _one_by_one(there, names, field, Path(folder), held), there.commit


def _forget_abandoned(place: Path) -> None:
    """Delete what workers that were killed had downloaded."""
    at_work = {str(pk) for pk in Addition.objects.filter(state=Addition.State.RUNNING).values_list("pk", flat=True)}
    for folder in place.glob("hub-*-*"):
        if folder.name.split("-")[1] not in at_work:
            shutil.rmtree(folder, ignore_errors=True)


def _one_by_one(there: hub.Repository, names: list[str], field: str, folder: Path, held: Held) -> text.Documents:
    for number, name in enumerate(names, 1):
        limits.check_room(folder, there.files[name])
        held.mine.update(stage=f"downloading and tokenizing, file {number} of {len(names)}")
        path = hub.fetch(there, name, lambda _: held.pulse.check(), folder)
        yield from text.documents(path, field, name=name)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        path.unlink()


def chosen(files: Collection[str], options: dict[str, Any], where: str) -> list[str]:
    """The files of a repository that hold the text asked for, in order; TextError says what there is instead."""
    readable = sorted(name for name in files if text.kind(name) and not NO_TEXT.search(name))
    if pattern := options.get("files"):
        found = [name for name in readable if fnmatch.fnmatchcase(name, pattern)]  # whose * goes over slashes
        if not found:
            raise text.TextError(f"no file of {where} that can be read matches {pattern!r}: {_some(readable, files)}")
        return found
    if not readable:
        raise text.TextError(_nothing(files, where))
    first = min(PREFERRED.index(text.kind(name)) for name in readable)
    return _of_split(_of_one_part([n for n in readable if text.kind(n) == PREFERRED[first]], where), options, where)


def _of_one_part(names: list[str], where: str) -> list[str]:
    """Refuse to mix what lies in folders of its own, such as the languages of a corpus."""
    parts = sorted({name.split("/")[0] for name in names if "/" in name} - {"data", "train", "test", "validation"})
    if len(parts) > 1:
        shown = ", ".join(parts[:12]) + (" …" if len(parts) > 12 else "")
        raise text.TextError(f"{where} has several parts ({shown}): name one as files, such as {parts[0]}/*")
    return names


def _of_split(names: list[str], options: dict[str, Any], where: str) -> list[str]:
    """Those of a split, told by their paths; of train, where none was asked for and there is one."""
    asked = options.get("split") or ""
    found = [name for name in names if re.search(rf"(^|[/_.-]){re.escape(asked or 'train')}([/_.-]|$)", name)]
    if asked and not found:
        raise text.TextError(f"{where} has no file of a split {asked!r}: {_some(names, names)}")
    return found or names


def _nothing(files: Collection[str], where: str) -> str:
    if any(name.endswith(".py") for name in files):
        return (
            f"{where} makes its text with a script, which is never run here: the revision refs/convert/parquet, where "
            "the hub has one, holds the same as files"
        )
    return f"{where} holds no text that can be read here: {_some([], files)}"


def _some(readable: Collection[str], files: Collection[str]) -> str:
    shown = sorted(readable or files)[:6]
    kinds = ", ".join(text.SUFFIXES)
    more = f" and {len(readable or files) - 6:,} more" if len(readable or files) > 6 else ""
    return f"it has {', '.join(shown) or 'no files'}{more}; {kinds} are read"
