"""Two SAEs beside each other: chosen, compared by a worker, and read; as a page, JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict, StreamingHttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from browser import bodies, pages
from browser.exports import Line
from browser.permissions import may_compare
from browser.queries import compare as queries
from browser.queries import compare_lists
from browser.queries.compare import Choosing, ComparePage
from browser.queries.compare_classes import Both
from browser.views.sources import wants_json
from sae_backend import comparisons
from sae_backend.comparisons import ComparisonError

NOT_MEMBER = "Having SAEs compared is for people with an account here: log in first."
NOT_YOURS = "Only who asked for this comparison, and staff, may cancel it."


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def compare(request: HttpRequest) -> HttpResponse:
    """The pair that the address names; a POST has it compared."""
    if request.method == "POST":
        return _ask(request)
    page = queries.page(request.user, request.GET)
    if isinstance(page, ComparePage) and "sae" in request.GET and not wants_json(request):
        return redirect(reverse("compare") + page.query)
    return _show(request, page, 404 if isinstance(page, Choosing) and wants_json(request) else 200)


def _show(request: HttpRequest, page: Choosing | ComparePage, status: int = 200) -> HttpResponse:
    return pages.as_json(page.as_json(), status) if wants_json(request) else pages.show(request, page, status)


def _asked(request: HttpRequest) -> QueryDict:
    """The pair and thresholds of a form or a JSON object, as an address has them."""
    said = QueryDict(mutable=True)
    with suppress(ValueError):  # then there is no pair in it, which the answer says
        said.update({key: str(value) for key, value in bodies.fields(request).items()})
    return said


def _ask(request: HttpRequest) -> HttpResponse:
    query = _asked(request)
    page = queries.page(request.user, query, with_list=False)
    if isinstance(page, Choosing):
        return _show(request, page, 409)
    if not may_compare(request.user):
        return _refused(request, query, NOT_MEMBER, 403)
    try:
        comparisons.ask(page.a, page.b, request.user if request.user.is_authenticated else None)
    except ComparisonError as error:
        return _refused(request, query, str(error), 409)
    if wants_json(request):
        return _show(request, queries.page(request.user, query, with_list=False), 202)
    return redirect(reverse("compare") + page.query)


def _refused(request: HttpRequest, query: QueryDict, said: str, status: int) -> HttpResponse:
    if wants_json(request):
        return pages.as_json({"error": "not possible", "message": said}, status)
    return pages.show(request, queries.page(request.user, query, said), status)


@require_POST
@never_cache
def compare_cancel(request: HttpRequest) -> HttpResponse:
    """Stop a comparison that waits or runs, for who asked for it."""
    query = _asked(request)
    page = queries.page(request.user, query, with_list=False)
    if isinstance(page, Choosing):
        return _show(request, page, 409)
    if not may_compare(request.user):
        return _refused(request, query, NOT_MEMBER, 403)
    if page.row is not None and not page.may_cancel:
        return _refused(request, query, NOT_YOURS, 403)
    done = page.row is not None and comparisons.cancel(page.row)
    return pages.as_json({"done": done}) if wants_json(request) else redirect(reverse("compare") + page.query)


@require_safe
@never_cache
def compare_live(request: HttpRequest) -> HttpResponse:
    """The part of its page that changes while it is computed."""
    page = queries.page(request.user, request.GET, with_list=False)
    if isinstance(page, Choosing):
        return pages.show(request, page)
    return render(request, "browser/_compare_live.html", {"page": page})


@require_safe
@never_cache
def compare_csv(request: HttpRequest) -> HttpResponse | StreamingHttpResponse:
    """Every latent of both SAEs with its counterparts and class."""
    page = queries.page(request.user, request.GET, with_list=False)
    if isinstance(page, Choosing) or page.both is None:
        said = page.said if isinstance(page, Choosing) else "these two are not compared yet"
        return HttpResponse(f"{said or 'Name two SAEs.'}\n", status=404, content_type="text/plain; charset=utf-8")
    name = f"{page.a.slug}-{page.b.slug}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(_csv(page.both), content_type="text/csv; charset=utf-8", headers=headers)


def _csv(both: Both) -> Iterator[str]:
    writer: Any = csv.writer(Line())
    yield writer.writerow(compare_lists.COLUMNS)
    for row in compare_lists.every(both):
        yield writer.writerow(row)
