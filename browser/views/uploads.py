"""Uploading an SAE: the page to begin, the page of each import, and the part of it that changes."""

from __future__ import annotations

from uuid import UUID

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_safe

from browser import pages
from browser.permissions import may_change, may_upload
from browser.queries import imports, uploads
from browser.queries.uploads import UploadPage
from sae_backend.models import SaeImport


@require_safe
@never_cache
@ensure_csrf_cookie
def upload(request: HttpRequest) -> HttpResponse:
    return pages.show(request, of(request, None))


@require_safe
@never_cache
@ensure_csrf_cookie
def import_detail(request: HttpRequest, key: UUID) -> HttpResponse:
    """The page of an import; once it is done that of its job, unless ?look asks how it was read."""
    row = imports.find(key)
    if row.state == SaeImport.State.DONE and row.run_id is not None and "look" not in request.GET:
        return redirect("run_detail", row.run_id)
    return pages.show(request, of(request, row))


@require_safe
@never_cache
def import_live(request: HttpRequest, key: UUID) -> HttpResponse:
    """The part that a worker changes; `?state=` is what the page shows, which is loaded again when that has passed."""
    page = of(request, imports.find(key))
    passed = request.GET.get("state") != page.state
    return render(request, "browser/_import_live.html", {"page": page, "passed": passed})


def of(request: HttpRequest, row: SaeImport | None, error: str = "") -> UploadPage:
    """The page as this user sees it."""
    mine = row is None or may_change(request.user, row)
    return uploads.page(row, request.user, may_upload(request.user), mine, error)


def refused(request: HttpRequest, row: SaeImport | None, sentence: str, status: int) -> HttpResponse:
    """The page with the reason why what a form asked for could not be done."""
    if row is not None:
        row = imports.find(row.key)
    return pages.show(request, of(request, row, sentence), status)
