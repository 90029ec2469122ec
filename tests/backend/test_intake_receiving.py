"""Bytes as they arrive, where others take room on the same disk meanwhile."""

from __future__ import annotations

import io
from typing import Any

import pytest

from sae_backend import intake
from sae_backend.intake import errors, limits

pytestmark = pytest.mark.django_db(transaction=True)


def test_the_reserve_of_the_disk_is_kept_while_others_write(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.Room, "EVERY", 100_000)

    class Filling(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            settings.UPLOAD_RESERVE_BYTES = 1 << 60  # the disk is full from now on
            return super().read(size)

    file = intake.add_file(intake.open_import(None), "ae.pt", 1_000_000)
    with pytest.raises(errors.Full, match="what has arrived is kept"):
        intake.append(file, 0, 1_000_000, Filling(bytes(1_000_000)))
    assert intake.offset(file) == 65_536
    settings.UPLOAD_RESERVE_BYTES = 0
    assert intake.append(file, 65_536, 934_464, io.BytesIO(bytes(934_464))) == 1_000_000
