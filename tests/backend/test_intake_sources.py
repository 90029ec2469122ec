"""What a worker lays out of an import before it reads it."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sae_backend import intake
from sae_backend.intake import IntakeError, source_of
from sae_backend.models import SaeImport

pytestmark = pytest.mark.django_db(transaction=True)


def with_archive(row: SaeImport, path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ae.pt", os.urandom(size))
    intake.receive(row, path.name, path)


def test_archives_share_the_limit_of_their_import(tmp_path: Path, settings: Any) -> None:
    row = intake.open_import(None)
    for name in ("a.zip", "b.zip"):
        with_archive(row, tmp_path / name, 4000)
    with source_of(row) as root:
        assert sorted(path.parent.name for path in root.rglob("ae.pt")) == ["a", "b"]
    settings.UPLOAD_MAX_BYTES = 7999
    with pytest.raises(IntakeError, match=r"b\.zip grows to more than"), source_of(row):
        pass


@pytest.mark.parametrize("hub_id", ["", "tests/fixtures"])
def test_an_import_whose_files_are_gone_reads_no_folder_of_the_workers(hub_id: str) -> None:
    row = intake.open_import(None, hub_id=hub_id)
    with pytest.raises(IntakeError, match="begin another one"), source_of(row):
        pass
