"""Imports: begun, sent files, checked, started, cancelled; by forms, by JSON with a token, and by tus.

Who asks by a form is sent to the import's page; who asks for JSON gets the import. A fault is a sentence in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from browser import bodies, incoming, pages, tus
from browser.errors import NotFound
from browser.permissions import may_change, may_upload
from browser.queries import imports
from browser.views import uploads
from sae_backend import intake
from sae_backend.intake import errors
from sae_backend.models import SaeImport
from sae_backend.storage import StorageError

View = Callable[..., HttpResponse]
NOT_ALLOWED = "uploading is for people with an account here: log in, or send a token of yours as Authorization: Bearer"
NOT_YOURS = "only who began this import, and staff, may change it"
NO_FILES = "send files (curl -F file=@ae.pt), or the id of a repository on the hub (hub=namespace/name)"


class NotAllowed(errors.IntakeError):
    """Somebody who may not upload, or change what another has begun."""

    kind = "not allowed"


STATUS = {**tus.STATUS, NotAllowed: 403}


def explained(view: View) -> View:
    """Answer what cannot be done with a status and a sentence, in the form that was asked for."""

    @wraps(view)
    def outer(request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        try:
            return view(request, *args, **options)
        except tus.WrongVersion:
            return tus.refusal(412, f"This server speaks tus {tus.VERSION}: say so in Tus-Resumable.")
        except errors.IntakeError as error:
            return _refused(request, error, options.get("key"))
        except StorageError as error:
            return _refused(request, errors.Unavailable(str(error)), options.get("key"))
        except NotFound as error:
            if not _wants_json(request):
                raise
            return pages.as_json({"error": error.kind, "message": f"{error.heading}. {error.sentence}"}, 404)
        except OSError as error:
            return _refused(request, errors.full(error), None)

    return outer


def _refused(request: HttpRequest, error: errors.IntakeError, key: UUID | None) -> HttpResponse:
    status = STATUS.get(type(error), 409)
    if "Tus-Resumable" in request.headers and "application/json" not in request.headers.get("Accept", ""):
        return tus.refusal(status, sentence(str(error)))
    if _wants_json(request):
        return pages.as_json({"error": error.kind, "message": sentence(str(error))}, status)
    return uploads.refused(request, imports.find(key) if key else None, sentence(str(error)), status)


def sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def _wants_json(request: HttpRequest) -> bool:
    asked = "application/json" in request.headers.get("Accept", "") or request.content_type == "application/json"
    by_program = pages.by_token(request) or "Tus-Resumable" in request.headers
    return asked or by_program or request.path.endswith(".json") or request.path.startswith("/api/")


def _member(request: HttpRequest, **_: Any) -> None:
    if not may_upload(request.user):
        raise NotAllowed(NOT_ALLOWED)


def _row(request: HttpRequest, key: UUID) -> SaeImport:
    """An import that this user may change."""
    row = imports.find(key)
    if not may_change(request.user, row):
        raise NotAllowed(NOT_YOURS)
    return row


def _data(request: HttpRequest) -> Mapping[str, Any]:
    """What a form or a JSON object says."""
    try:
        return bodies.fields(request)
    except ValueError as error:
        raise errors.Malformed(str(error)) from error


def _answer(request: HttpRequest, row: SaeImport, status: int) -> HttpResponse:
    if not _wants_json(request):
        return redirect("import_detail", row.key)
    response = pages.as_json(imports.as_json(imports.find(row.key)), status)
    if status == 201:
        response["Location"] = f"/imports/{row.key}"
    return response


def _begun(request: HttpRequest, data: Mapping[str, Any], use: Callable[[SaeImport], None]) -> SaeImport:
    """An import with the files that came along, used; none is left where they, or what is said of them, are refused."""
    owner = request.user if request.user.is_authenticated else None
    row = intake.open_import(owner, str(data.get("name") or ""), str(data.get("hub") or ""))
    try:
        _take_files(request, row, str(data.get("sha256") or ""))
        use(row)
    except Exception:
        intake.cancel(row)
        raise
    return row


def _take_files(request: HttpRequest, row: SaeImport, sha256: str = "") -> int:
    came = list(incoming.files(request))
    for name, place in came:
        intake.receive(row, name, place, sha256 if len(came) == 1 else "")
    return len(came)


# ---- begun and sent ------------------------------------------------------------------------------


@explained
@never_cache
@incoming.takes_files(_member)
@require_POST
def import_create(request: HttpRequest) -> HttpResponse:
    """Begin an import: files and choices may come along, or be sent to its address."""
    data = _data(request)
    said = imports.choices(data)
    return _answer(request, _begun(request, data, lambda row: intake.save(row, **said)), 201)


@explained
@never_cache
@incoming.takes_files(_member)
@require_http_methods(["GET", "HEAD", "POST"])
def import_api(request: HttpRequest) -> HttpResponse:
    """POST: files or a hub id, and choices; checked and, unless `ask` is set, computed where nothing is wrong."""
    if request.method != "POST":
        return pages.as_json({"imports": [imports.as_json(row) for row in imports.mine(request.user)]})
    data = _data(request)
    if not request.FILES and not data.get("hub"):
        raise errors.Malformed(NO_FILES)
    said = {**imports.choices(data), "go_on": str(data.get("ask", "")).lower() not in ("1", "true", "yes", "on")}
    return _answer(request, _begun(request, data, lambda row: intake.check(row, **said)), 202)


@explained
@never_cache
@incoming.takes_files(_row)
@require_POST
def import_form(request: HttpRequest, key: UUID) -> HttpResponse:
    """Files of a plain form, for browsers without scripts."""
    row = _row(request, key)
    if not _take_files(request, row):
        raise errors.Malformed("choose at least one file")
    return _answer(request, row, 201)


@explained
@never_cache
def import_files(request: HttpRequest, key: UUID) -> HttpResponse:
    """Where tus begins a file."""
    if tus.method(request) == "OPTIONS":
        return tus.options()
    if tus.method(request) != "POST":
        return HttpResponseNotAllowed(["OPTIONS", "POST"])
    return tus.create(request, _row(request, key))


FILE: dict[str, Callable[..., HttpResponse]] = {"HEAD": tus.head, "PATCH": tus.patch, "DELETE": tus.delete}


@explained
@never_cache
def import_file(request: HttpRequest, key: UUID, file: UUID) -> HttpResponse:
    """One file: how far it has come, its next piece, its end; a form's POST takes it back."""
    row = _row(request, key)
    found = imports.find_file(row, file)
    if tus.method(request) == "OPTIONS":
        return tus.options()
    if tus.method(request) in FILE:
        return FILE[tus.method(request)](request, found)
    if request.method != "POST":
        return HttpResponseNotAllowed(["OPTIONS", *FILE, "POST"])
    intake.remove_file(found)
    return _answer(request, row, 200)


# ---- seen and steered ----------------------------------------------------------------------------


@explained
@require_safe
@never_cache
def import_list_json(request: HttpRequest) -> HttpResponse:
    """What this user has begun, the newest first."""
    _member(request)
    return pages.as_json({"imports": [imports.as_json(row) for row in imports.mine(request.user)]})


@explained
@require_safe
@never_cache
def import_json(request: HttpRequest, key: UUID) -> HttpResponse:
    """All that is known of it, to everybody, as its page and the list of jobs are."""
    return pages.as_json(imports.as_json(imports.find(key)))


def _with_choices(act: Callable[..., None], status: int, **more: Any) -> View:
    """Do something with an import, and with what is chosen for it in the same request."""

    @explained
    @require_POST
    @never_cache
    def view(request: HttpRequest, key: UUID) -> HttpResponse:
        row = _row(request, key)
        act(row, **imports.choices(_data(request)), **more)
        return _answer(request, row, status)

    return view


import_save = _with_choices(intake.save, 200)  # before it is checked
import_check = _with_choices(intake.check, 202, go_on=False)  # has a worker read and try what has arrived
import_start = _with_choices(intake.start, 202)  # has it computed


@explained
@require_POST
@never_cache
def import_cancel(request: HttpRequest, key: UUID) -> HttpResponse:
    """Stop an import and delete its files; one that is over stays as it is."""
    row = _row(request, key)
    intake.cancel(row)
    return _answer(request, row, 200)
