"""Language models and data sets: listed, added, looked after and deleted; by forms, and by JSON with a token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from browser import bodies, incoming, pages, tus
from browser.errors import NotFound
from browser.permissions import is_staff, may_add_sources, may_change
from browser.queries import sources
from browser.queries.sources import Adding, DatasetPage, LmPage
from browser.source_forms import DatasetForm, LmForm, OtherLmForm, SourceForm
from sae_backend import additions
from sae_backend.additions import AdditionError
from sae_backend.intake.errors import IntakeError, full
from sae_backend.models import Addition
from sae_backend.storage import StorageError

View = Callable[..., HttpResponse]
GET_OR_POST = require_http_methods(["GET", "HEAD", "POST"])
NOT_MEMBER = "Adding language models and data sets is for people with an account here: log in first."
NOT_YOURS = "Only who added it, and staff, may do this."
STEER = {"cancel": additions.cancel, "again": additions.again, "forget": additions.forget}


class Refused(Exception):
    """Somebody who may not, with a sentence."""


def wants_json(request: HttpRequest) -> bool:
    return request.path.endswith(".json") or pages.by_token(request)


def explained(show: Callable[..., Any]) -> Callable[[View], View]:
    """Answer what cannot be done with a sentence, on the page that it was asked from or as JSON."""

    def decorate(view: View) -> View:
        @wraps(view)
        def outer(request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
            try:
                return view(request, *args, **options)
            except (AdditionError, IntakeError, StorageError, Refused) as error:
                refused = error
            except OSError as error:
                refused = full(error)
            status = 403 if isinstance(refused, Refused) else tus.STATUS.get(type(refused), 409)
            if wants_json(request):
                return pages.as_json({"error": "not possible", "message": str(refused)}, status)
            return pages.show(request, show(request.user, *args, **options, error=str(refused)), status)

        return outer

    return decorate


def _said(request: HttpRequest) -> Mapping[str, Any]:
    """The fields of a form, or of a JSON object."""
    try:
        said = bodies.fields(request)
    except ValueError as error:
        raise AdditionError(str(error)) from error
    return {key: "" if value is None else value for key, value in said.items()}


def _member(request: HttpRequest, *_: Any, **__: Any) -> None:
    if not may_add_sources(request.user):
        raise Refused(NOT_MEMBER)


def _owner(request: HttpRequest) -> Any:
    return request.user if request.user.is_authenticated else None


def _ask(request: HttpRequest, **fields: Any) -> Addition:
    """Queue it as this user's; the server's own hub token is for staff."""
    options = {**fields.pop("options", {}), **({"token": True} if is_staff(request.user) else {})}
    return additions.ask(owner=_owner(request), options=options, **fields)


def _queued(request: HttpRequest, row: Addition) -> HttpResponse:
    if wants_json(request):
        return pages.as_json(sources.addition(request.user, row.pk).as_json(), 202)
    return redirect("addition", row.pk)


def _invalid(request: HttpRequest, form: SourceForm | OtherLmForm, page: Callable[[], Any]) -> HttpResponse:
    if wants_json(request):
        wrong = {field or "form": " ".join(map(str, messages)) for field, messages in form.errors.items()}
        said = "; ".join(f"{field}: {words}" for field, words in wrong.items())
        return pages.as_json({"error": "not valid", "message": said, "fields": wrong}, 400)
    return pages.show(request, page(), 400)


# ---- language models ---------------------------------------------------------------------------------


@GET_OR_POST
@never_cache
@explained(sources.lm_list)
def lm_list(request: HttpRequest) -> HttpResponse:
    """The list; a POST adds one."""
    if request.method == "POST":
        return _lm_create(request)
    page = sources.lm_list(request.user)
    return pages.as_json(page.as_json()) if wants_json(request) else pages.show(request, page)


def _lm_create(request: HttpRequest) -> HttpResponse:
    _member(request)
    form = LmForm(_said(request), folders=is_staff(request.user))
    if not form.is_valid():
        return _invalid(request, form, lambda: sources.lm_list(request.user, form))
    return _queued(request, _ask(request, **form.addition))


# ---- data sets ---------------------------------------------------------------------------------------


@csrf_exempt  # a POST is checked where its body is read
@GET_OR_POST
@never_cache
@explained(sources.dataset_list)
def dataset_list(request: HttpRequest) -> HttpResponse:
    """The list; a POST adds one, with the file that comes along or from where it says."""
    if request.method == "POST":
        return _dataset_create(request)
    page = sources.dataset_list(request.user)
    return pages.as_json(page.as_json()) if wants_json(request) else pages.show(request, page)


def _may_send(request: HttpRequest) -> None:
    """Look at who asks, and how much comes; a form around a file is short."""
    _member(request)
    size = incoming.length(request) - incoming.FORM
    if request.content_type == "multipart/form-data" and size > 0:
        additions.check_size(size, _owner(request))


@incoming.takes_files(_may_send, lambda: settings.TEXT_MAX_BYTES)
def _dataset_create(request: HttpRequest) -> HttpResponse:
    files = list(incoming.files(request)) if request.content_type != "application/json" else []
    name, place = files[0] if files else ("", None)
    form = DatasetForm(_said(request), folders=is_staff(request.user), upload=name)
    if not form.is_valid():
        return _invalid(request, form, lambda: sources.dataset_list(request.user, form))
    kept = _kept(request, name, place)
    try:
        return _queued(request, _ask(request, **form.addition, **kept))
    except (AdditionError, IntakeError):
        additions.forget_text(kept.get("text_sha256", ""))
        raise


def _kept(request: HttpRequest, name: str, place: Path | None) -> dict[str, Any]:
    """The file that came along, stored where workers find it."""
    if place is None:
        return {}
    additions.check_name(name)
    additions.check_size(place.stat().st_size, _owner(request))
    sha256, size = additions.keep_text(place)
    return {"text_sha256": sha256, "text_bytes": size}


@require_POST
@never_cache
@explained(sources.dataset)
def dataset_for(request: HttpRequest, pk: int) -> HttpResponse:
    """Read the text of a data set for another language model."""
    _member(request)
    page, form = sources.dataset(request.user, pk), OtherLmForm(_said(request))
    if not form.is_valid():
        return _invalid(request, form, lambda: sources.dataset(request.user, pk, error="Choose a language model."))
    lm, token = form.cleaned_data["lm"], is_staff(request.user)
    return _queued(request, additions.for_other_lm(page.row.dataset, lm, _owner(request), token))


# ---- one of either -----------------------------------------------------------------------------------


def _detail(find: Callable[..., LmPage | DatasetPage]) -> View:
    @require_safe
    @never_cache
    def view(request: HttpRequest, pk: int) -> HttpResponse:
        page = find(request.user, pk)
        return pages.as_json(page.row.as_json()) if wants_json(request) else pages.show(request, page)

    return view


def _delete(find: Callable[..., Any], remove: Callable[[Any], None], then: str) -> View:
    @require_POST
    @never_cache
    @explained(find)
    def view(request: HttpRequest, pk: int) -> HttpResponse:
        page = find(request.user, pk)
        if not page.may_change:
            raise Refused(NOT_YOURS)
        remove(page.row)
        return pages.as_json({"done": True}) if wants_json(request) else redirect(then)

    return view


lm_detail, dataset_detail = _detail(sources.lm), _detail(sources.dataset)
lm_delete = _delete(sources.lm, lambda row: additions.remove_lm(row.lm), "lm_list")
dataset_delete = _delete(sources.dataset, lambda row: additions.remove_dataset(row.dataset), "dataset_list")


# ---- on their way in ---------------------------------------------------------------------------------


def _addition(user: Any, pk: int, action: str = "", error: str = "") -> Adding:
    return replace(sources.addition(user, pk), said=error)


@require_safe
@never_cache
def addition(request: HttpRequest, pk: int) -> HttpResponse:
    page = sources.addition(request.user, pk)
    return pages.as_json(page.as_json()) if wants_json(request) else pages.show(request, page)


@require_safe
@never_cache
def addition_live(request: HttpRequest, pk: int) -> HttpResponse:
    """The part of its page that changes."""
    return render(request, "browser/_addition_live.html", {"page": sources.addition(request.user, pk)})


@require_safe
@never_cache
def additions_live(request: HttpRequest, kind: str) -> HttpResponse:
    """The part of a list that changes."""
    return render(request, "browser/_additions.html", {"adding": sources.adding(request.user, kind), "kind": kind})


@require_POST
@never_cache
@explained(_addition)
def addition_steer(request: HttpRequest, pk: int, action: str) -> HttpResponse:
    """Cancel it, try it again, or take it from the list."""
    page = sources.addition(request.user, pk)
    if not may_change(request.user, page.row):
        raise NotFound(f"There is no addition {pk}", NOT_YOURS)
    done = STEER[action](page.row)
    if wants_json(request):
        return pages.as_json({"done": done is not False})
    return redirect(page.list_url) if action == "forget" else redirect("addition", pk)
