"""The frontier as a page, as JSON and as CSV."""

from __future__ import annotations

import csv

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from browser import pages
from browser.exports import cell
from browser.queries import frontier


@require_safe
@never_cache
def detail(request: HttpRequest) -> HttpResponse:
    return pages.show(request, frontier.page(frontier.Choice.of(request.GET)))


@require_safe
@never_cache
def as_json(request: HttpRequest) -> HttpResponse:
    return pages.as_json(frontier.page(frontier.Choice.of(request.GET)).as_json())


@require_safe
@never_cache
def as_csv(request: HttpRequest) -> HttpResponse:
    headers = {"Content-Disposition": 'attachment; filename="frontier.csv"'}
    response = HttpResponse(content_type="text/csv; charset=utf-8", headers=headers)
    rows = frontier.as_csv(frontier.page(frontier.Choice.of(request.GET)).rows)
    csv.writer(response).writerows([cell(value) for value in row] for row in rows)
    return response
