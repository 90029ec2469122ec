"""Which step of which training an import is: what a person says of it counts before what names tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from sae_backend import series
from sae_backend.intake.errors import Malformed
from sae_backend.models import SaeImport

MOST = 2**62  # steps


def told(row: SaeImport) -> tuple[str, int | None]:
    """Series and step by the names of its files, of where it comes from, or its own; ("", None) where none says."""
    names = (file.name for file in sorted(row.files.all(), key=lambda file: file.pk))
    found = filter(None, map(series.recognised, [_place(row), *_folders(names), row.name]))
    return next(found, ("", None))


def in_series(row: SaeImport) -> dict[str, Any]:
    """The series and step that it will have, both or neither."""
    name, step = told(row)
    name, step = row.series or name, step if row.step is None else row.step
    return {"series": name, "step": step} if name and step is not None else {"series": "", "step": None}


def refuse_half(row: SaeImport) -> None:
    """A series needs a step and a step a series, wherever each comes from."""
    if (row.series or row.step is not None) and not in_series(row)["series"]:
        missing = "series" if row.step is not None else "step"
        raise Malformed(f"give the {missing} too: a checkpoint in training has a series and a step")


def _place(row: SaeImport) -> str:
    """Where it comes from as a path; of the hub without the revision, which is not of the training."""
    return re.sub(r"@[^:]*", "", row.source).replace(":", "/") if row.from_hub else row.source


def _folders(names: Iterable[str]) -> Iterator[str]:
    """Uploaded files and the folders they are in: a step stands in the name of either."""
    for name in names:
        yield from (name, name.rpartition("/")[0])
