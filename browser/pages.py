"""How a page's context becomes a response. A context is a frozen dataclass that names its template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar, Protocol

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.cache import get_conditional_response
from django.utils.http import quote_etag

from browser.queries.saes import ResolvedSae
from sae_backend.models import Run, Sae

DAY = 86400


class Page(Protocol):
    template: ClassVar[str]


def show(request: HttpRequest, page: Page, status: int = 200) -> HttpResponse:
    """The page; its template sees it as `page`."""
    return render(request, page.template, {"page": page}, status=status)


def as_json(data: Any, status: int = 200) -> JsonResponse:
    """Any JSON value; what is undefined must be None, for NaN is not JSON."""
    style = {"ensure_ascii": False, "allow_nan": False, "separators": (",", ":")}
    return JsonResponse(data, status=status, safe=False, json_dumps_params=style)


def by_token(request: HttpRequest) -> bool:
    """Whether a program asks, with a token of ours: a proxy's own password comes in the same header."""
    return request.headers.get("Authorization", "").lower().startswith("bearer ")


@cache
def version() -> str:
    """A hash of all that decides how a page looks: templates, this package, style and scripts."""
    digest = hashlib.sha256()
    for folder in ("templates", "browser", "static"):
        for path in sorted((settings.BASE_DIR / folder).rglob("*")):
            if path.suffix in {".html", ".py", ".css", ".js", ".svg"}:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def version_of(sae: Sae) -> str:
    """The same with an SAE's name, for what is kept longer than people may call it so."""
    return hashlib.sha256(f"{version()}/{sae.name}".encode()).hexdigest()[:12]


def of_run(request: HttpRequest, run: Run, build: Callable[[], HttpResponse], more: object = 0) -> HttpResponse:
    """Build a page that a live run (and `more`) decides, or answer 304 to whoever has it already.

    It is asked for every time: its head names who is logged in, and its style sheets change with the site.
    """
    who = request.user.get_username()
    return _fresh(request, run, build, f"{more}/{who}", "no-cache")


def kept(
    request: HttpRequest, resolved: ResolvedSae, build: Callable[[], HttpResponse], age: int = DAY, more: int = 0
) -> HttpResponse:
    """The same for what names nobody: what a pinned run says never changes, so everybody may keep it so long."""
    control = f"public, max-age={age}, immutable" if resolved.pinned else "no-cache"
    return _fresh(request, resolved.run, build, f"{more or ''}", control)


def _fresh(
    request: HttpRequest, run: Run, build: Callable[[], HttpResponse], more: str, control: str
) -> HttpResponse:
    shown = f"{run.sae.name}/{run.sae.slug}/{run.sae.about}/{run.state}/{run.pinned}/{more}"
    etag = quote_etag(f"{run.pk}-{version()}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}")
    response = None if settings.DEBUG else get_conditional_response(request, etag=etag)
    response = response or build()
    if response.status_code in (200, 304) and not response.has_header("Cache-Control"):
        response["ETag"], response["Cache-Control"] = etag, control
    return response
