"""What belongs to no noun: health, the jump box, errors."""

from __future__ import annotations

from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from browser import definitions, pages
from browser.errors import NotAsked, NotFound
from browser.queries import jump as targets

_migrated = False


def _answers() -> bool:
    """The database answers; until it once had every migration, each is looked for."""
    global _migrated
    with connection.cursor() as cursor:
        cursor.execute("select 1")
    if not _migrated:
        executor = MigrationExecutor(connection)
        _migrated = not executor.migration_plan(executor.loader.graph.leaf_nodes())
    return _migrated


@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """200 "ok" when pages can be served, else 503 and the reason."""
    try:
        good, reason = _answers(), "migrations are not applied yet: run manage.py migrate"
    except DatabaseError:
        good, reason = False, "the database does not answer"
    return HttpResponse("ok" if good else reason, status=200 if good else 503, content_type="text/plain")


@require_safe
def statistics(request: HttpRequest) -> HttpResponse:
    """What every number on a page means."""
    return pages.show(request, definitions.Definitions())


def jump(request: HttpRequest) -> HttpResponse:
    """Send the jump box's words to the page they mean."""
    return redirect(targets.meaning(request.GET.get("q", ""), request.GET.get("on", ""), request.get_host()))


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Render every 404 and 410: what the address asked for, and what there is instead."""
    error = exception if isinstance(exception, NotFound) else _unknown(request)
    return _said(request, error, request.path.endswith(".json"))


def not_asked(request: HttpRequest, reason: str = "") -> HttpResponse:
    """What Django's CSRF check turned away: mostly a program without its token."""
    by_program = request.path.endswith(".json") or request.path.startswith("/api/")
    return _said(request, NotAsked(), by_program or "application/json" in request.headers.get("Accept", ""))


def _said(request: HttpRequest, error: NotFound, as_json: bool) -> HttpResponse:
    if as_json:
        return pages.as_json({"error": error.kind, "message": f"{error.heading}. {error.sentence}"}, error.status)
    return render(request, "browser/not_found.html", {"error": error}, status=error.status)


def _unknown(request: HttpRequest) -> NotFound:
    sentence = f"Nothing is at {request.path}. The list of SAEs leads to every page."
    return NotFound("There is no such page", sentence)


def server_error(request: HttpRequest) -> HttpResponse:
    """Say that the fault is ours, with no query and no context processor that could fail again."""
    if request.path.endswith(".json"):
        return pages.as_json({"error": "server error", "message": "The server failed; its log says why."}, 500)
    return render(None, "browser/server_error.html", status=500)
