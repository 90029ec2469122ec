"""Files that come inside a form, or from curl: written once, as they come, to where the store can take them over."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt, csrf_protect

from browser import tus
from sae_backend.intake import errors, limits
from sae_backend.intake.receiving import incoming

View = Callable[..., HttpResponse]
FORM = 1 << 20  # bytes of a form beside its files


class Direct(FileUploadHandler):
    """Writes each file under a name of our own; it goes with the request, but for what an import has linked."""

    def new_file(self, *args: Any, **options: Any) -> None:
        super().new_file(*args, **options)
        self.place = tempfile.NamedTemporaryFile(dir=_folder(), prefix="form-")  # noqa: SIM115  # closed with the request

        self.room = limits.Room(_folder())

    def receive_data_chunk(self, raw_data: bytes, start: int) -> bytes | None:
        self.room.take(len(raw_data))
        self.place.write(raw_data)
        return None

    def file_complete(self, file_size: int) -> UploadedFile:
        self.place.flush()
        return UploadedFile(file=self.place, name=self.file_name, content_type=self.content_type, size=file_size)


def _folder() -> Path:
    folder = incoming()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def takes_files(before: Callable[..., object], most: Callable[[], int] | None = None) -> Callable[[View], View]:
    """Look at who asks, and for how much, before a body of gigabytes is read; only then at its CSRF token."""

    def decorate(view: View) -> View:
        @csrf_exempt
        @wraps(view)
        def outer(request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
            before(request, *args, **options)
            _check_length(request, most() if most else settings.UPLOAD_MAX_BYTES)
            request.upload_handlers = [Direct(request)]
            with tus.patient(request):
                return csrf_protect(view)(request, *args, **options)

        return outer

    return decorate


def length(request: HttpRequest) -> int:
    """How long the body is said to be; a server gives no more of it."""
    said = request.META.get("CONTENT_LENGTH") or "0"
    if not said.isdecimal():
        raise errors.Malformed("say how long the request is, in Content-Length")
    return int(said)


def _check_length(request: HttpRequest, most: int) -> None:
    """Refuse a body that is too long for what it is to be, or for the disk."""
    if length(request) > most + FORM:
        raise errors.TooLarge(f"one import may have {limits.in_words(most)} here")
    limits.check_room(_folder(), length(request))


def files(request: HttpRequest) -> Iterator[tuple[str, Path]]:
    """The name and place of every file in a form, whatever its field."""
    for field in request.FILES:
        for file in request.FILES.getlist(field):
            assert file.file is not None
            yield str(file.name), Path(str(file.file.name))
