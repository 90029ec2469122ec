"""The tus protocol 1.0 (https://tus.io/protocols/resumable-upload): files in pieces, gone on with after any fault.

Ours, because no library for Django is kept up: those there are were written for Django 2 and 3, or keep their state in
SQLite or in the cache, which this site's restarts empty. Creation, creation with upload, checksum, expiration and
termination are spoken; where bytes go, and what is refused, is in sae_backend.intake.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.http import http_date

from sae_backend import intake
from sae_backend.intake import errors
from sae_backend.models import SaeImport, UploadFile

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,checksum,expiration,termination"
ALGORITHMS = ("sha256", "sha1")
PIECE = "application/offset+octet-stream"
STATUS: dict[type[Exception], int] = {
    errors.Malformed: 400, errors.WrongOffset: 409, errors.Gone: 410, errors.TooLarge: 413, errors.Busy: 423,
    errors.TooMany: 429, errors.Damaged: 460, errors.Unavailable: 503, errors.Full: 507,
}  # fmt: skip


class WrongVersion(Exception):
    """A client of another version of the protocol."""


def method(request: HttpRequest) -> str:
    """The request's, or the one that a client behind a narrow proxy means."""
    return (request.headers.get("X-HTTP-Method-Override") or request.method or "").upper()


def options() -> HttpResponse:
    """What this server can."""
    return _answer(
        204, {
            "Tus-Version": VERSION, "Tus-Extension": EXTENSIONS, "Tus-Max-Size": str(settings.UPLOAD_MAX_BYTES),
            "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
        },
    )  # fmt: skip


def create(request: HttpRequest, row: SaeImport) -> HttpResponse:
    """Make room for a file, and take what comes along of it."""
    _check_version(request)
    if "Upload-Defer-Length" in request.headers:
        raise errors.Malformed("say at once how long the file is, in Upload-Length")
    told = metadata(request.headers.get("Upload-Metadata", ""))
    name = told.get("relativePath") if "/" in told.get("relativePath", "") else told.get("filename") or told.get("name")
    file = intake.add_file(row, name or "", _number(request, "Upload-Length"), told.get("sha256", ""))
    at = _first_piece(request, file) if request.content_type == PIECE else intake.offset(file)
    place = reverse("import_file", args=[row.key, file.key])
    return _answer(201, {"Location": place, "Upload-Offset": str(at), **_expiry(file)})


def _first_piece(request: HttpRequest, file: UploadFile) -> int:
    """How much is here of what came along: who knows the file's address can send the rest, whatever became of this."""
    try:
        return _append(request, file, 0)
    except (errors.Malformed, errors.TooLarge):
        intake.remove_file(file)
        raise
    except errors.IntakeError:
        return intake.offset(file)


def head(request: HttpRequest, file: UploadFile) -> HttpResponse:
    """How far a file has come."""
    _check_version(request)
    _refuse_gone(file)
    at = str(intake.offset(file))
    told = {"Upload-Offset": at, "Upload-Length": str(file.size), "Cache-Control": "no-store", **_expiry(file)}
    return _answer(200, told)


def patch(request: HttpRequest, file: UploadFile) -> HttpResponse:
    """Take the next piece."""
    _check_version(request)
    _refuse_gone(file)
    if request.content_type != PIECE:
        return refusal(415, f"A piece of a file comes as {PIECE}.")
    at = _append(request, file, _number(request, "Upload-Offset"))
    return _answer(204, {"Upload-Offset": str(at), **_expiry(file)})


def delete(request: HttpRequest, file: UploadFile) -> HttpResponse:
    _check_version(request)
    _refuse_gone(file)
    intake.remove_file(file)
    return _answer(204)


def refusal(status: int, sentence: str) -> HttpResponse:
    """A sentence that clients show."""
    response = _answer(status, {"Tus-Version": VERSION} if status == 412 else {})
    response.content = f"{sentence}\n".encode()
    response["Content-Type"] = "text/plain; charset=utf-8"
    return response


@contextmanager
def patient(request: HttpRequest) -> Iterator[None]:
    """End a request whose sender is silent for long: it would hold the file. gunicorn alone lets us."""
    connection = request.META.get("gunicorn.socket")
    if connection is not None:
        connection.settimeout(settings.UPLOAD_IDLE_SECONDS)
    try:
        yield
    finally:
        if connection is not None:
            connection.settimeout(None)


def metadata(header: str) -> dict[str, str]:
    """The pairs of Upload-Metadata, whose values are base64 of UTF-8."""
    told = {}
    for pair in filter(None, (part.strip() for part in header.split(","))):
        key, _, value = pair.partition(" ")
        try:
            told[key] = base64.b64decode(value.strip(), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise errors.Malformed(f"the value of {key[:40]!r} in Upload-Metadata is not base64 of UTF-8") from None
    return told


def _append(request: HttpRequest, file: UploadFile, at: int) -> int:
    length = request.META.get("CONTENT_LENGTH") or ""
    if not length.isdecimal():
        raise errors.Malformed("say how long the piece is, in Content-Length")
    algorithm, digest = _checksum(request.headers.get("Upload-Checksum", ""))
    with patient(request):
        return intake.append(file, at, int(length), request, algorithm, digest)


def _checksum(header: str) -> tuple[str, bytes]:
    if not header:
        return "", b""
    algorithm, _, value = header.partition(" ")
    if algorithm not in ALGORITHMS:
        raise errors.Malformed(f"a checksum is one of {', '.join(ALGORITHMS)}")
    try:
        return algorithm, base64.b64decode(value.strip(), validate=True)
    except binascii.Error:
        raise errors.Malformed("the value of Upload-Checksum is not base64") from None


def _number(request: HttpRequest, name: str) -> int:
    value = request.headers.get(name, "")
    if not value.isdecimal() or len(value) > 18:
        raise errors.Malformed(f"{name} is a number of bytes")
    return int(value)


def _check_version(request: HttpRequest) -> None:
    if request.headers.get("Tus-Resumable") != VERSION:
        raise WrongVersion


def _refuse_gone(file: UploadFile) -> None:
    if not file.kept:
        raise errors.Gone(f"{file.name} was deleted: begin another import")


def _expiry(file: UploadFile) -> Mapping[str, str]:
    moment = intake.expires(file.of)
    return {"Upload-Expires": http_date(moment.timestamp())} if moment and not file.complete else {}


def _answer(status: int, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(status=status, headers={"Tus-Resumable": VERSION, **(headers or {})})
