"""The list of jobs, a job's page, and the parts of both that change."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from browser import pages
from browser.queries import runs


@require_safe
@never_cache
def run_list(request: HttpRequest) -> HttpResponse:
    return pages.show(request, runs.listing())


@require_safe
@never_cache
def runs_live(request: HttpRequest) -> HttpResponse:
    """The part of the list that changes."""
    return render(request, "browser/_runs_live.html", {"page": runs.listing()})


@require_safe
@never_cache
def runs_running(request: HttpRequest) -> HttpResponse:
    """What is being computed, in few words, for the home page."""
    return render(request, "browser/_running.html", {"running": runs.unfinished()})


@require_safe
@never_cache
def run_list_json(request: HttpRequest) -> HttpResponse:
    listing = runs.listing()
    jobs = [progress.as_json() for progress in (*listing.unfinished, *listing.finished)]
    imports = [{"id": i.pk, "name": i.name, "state": i.state, "error": i.error or None} for i in listing.imports]
    return pages.as_json({"jobs": jobs, "imports": imports})


@require_safe
@never_cache
def run_detail(request: HttpRequest, pk: int) -> HttpResponse:
    return pages.show(request, runs.page(pk))


@require_safe
@never_cache
def run_live(request: HttpRequest, pk: int) -> HttpResponse:
    """The part of a job's page that changes; ?inside is for the page of an SAE that waits for it."""
    return render(request, "browser/_run_live.html", {"page": runs.page(pk), "inside": "inside" in request.GET})


@require_safe
@never_cache
def run_json(request: HttpRequest, pk: int) -> HttpResponse:
    page = runs.page(pk)
    log = [{"at": line.at.isoformat(), "level": line.level, "text": line.text} for line in page.log]
    return pages.as_json({**page.progress.as_json(), "log": log})
