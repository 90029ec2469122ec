"""The page of what was searched for, and its data."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from browser import pages
from browser.queries import search as results


@require_safe
@never_cache
def search(request: HttpRequest) -> HttpResponse:
    return pages.show(request, results.page(results.Asked.of(request.GET)))


@require_safe
@never_cache
def search_json(request: HttpRequest) -> HttpResponse:
    return pages.as_json(results.page(results.Asked.of(request.GET)).as_json())
