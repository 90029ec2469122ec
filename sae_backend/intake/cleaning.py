"""What imports leave behind: files of those that are over, and of those that nobody comes back for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from sae_backend import storage
from sae_backend.intake import receiving, sources
from sae_backend.models import SaeImport, UploadFile

State = SaeImport.State
FORM_SECONDS = 6 * 3600.0  # a request that still writes is younger
FORGOTTEN = (State.RECEIVING, State.WAITING, State.FAILED)
EXPIRED = "nobody came back to this import for {:,.0f} hours, so its files were deleted: begin another one"


def clean() -> list[int]:
    """Delete the files of imports that have ended; which imports."""
    _expire()
    _forget_laid_out()
    _forget_forms()
    return _remove_ended()


def _expire() -> None:
    """End imports that wait for a person who does not come; those of the shell have their files elsewhere."""
    cutoff = Now() - timedelta(hours=settings.UPLOAD_EXPIRE_HOURS)
    late = SaeImport.objects.filter(state__in=FORGOTTEN, touched_at__lte=cutoff).filter(Q(source="") | Q(from_hub=True))
    for pk in list(late.values_list("pk", flat=True)):
        ended = {"state": State.CANCELLED, "error": EXPIRED.format(settings.UPLOAD_EXPIRE_HOURS), "done_at": Now()}
        if late.filter(pk=pk).update(**ended):
            UploadFile.objects.filter(of=pk).update(kept=False)


def _remove_ended() -> list[int]:
    """Of failed ones only what the shell's import was given: an upload may be corrected and checked again."""
    shared = storage.current()
    there = _numbers(shared.folders(receiving.FOLDER)) | _numbers(path.name for path in _staged())
    over = Q(state__in=(State.DONE, State.CANCELLED)) | (Q(state=State.FAILED, files=None))
    ended = list(SaeImport.objects.filter(over, pk__in=there).order_by("pk").values_list("pk", flat=True))
    for pk in ended:
        receiving.remove_bytes(SaeImport(pk=pk))
    return ended


def _staged() -> list[Path]:
    return list(receiving.incoming().glob("*"))


def _forget_laid_out() -> None:
    """Empty this host's folders of imports that no worker reads any more."""
    folders = sources.unpacked(0).parent.glob("*")
    here = _numbers(path.name for path in folders)
    read = SaeImport.objects.filter(state__in=(State.CHECKING, State.RUNNING), pk__in=here)
    for pk in here - set(read.values_list("pk", flat=True)):
        shutil.rmtree(sources.unpacked(pk), ignore_errors=True)


def _forget_forms() -> None:
    """Delete what forms sent to a web server that was killed before it could."""
    for path in receiving.incoming().glob("form-*"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > FORM_SECONDS:
                path.unlink()


def _numbers(names: Iterable[str]) -> set[int]:
    return {int(name) for name in names if name.isdigit()}
