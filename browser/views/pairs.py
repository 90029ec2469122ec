"""Pairs of latents of nearly opposite or equal direction: the list, its data, and one pair."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_safe

from browser import links, pages
from browser.errors import NotReady, TooSlow
from browser.exports import Line
from browser.queries import pair_list, pair_page, saes
from browser.queries.pair_list import Choice
from browser.queries.saes import ResolvedSae
from browser.views.latents import compared
from browser.views.saes import too_slow


@require_safe
def pair_list_page(request: HttpRequest, ref: str) -> HttpResponse:
    """Show one page of an SAE's pairs; an SAE that is not computed yet shows its progress instead."""
    try:
        resolved = links.opened(request, ref)
    except NotReady:
        return redirect("sae_detail", ref)
    return pages.of_run(request, resolved.run, lambda: _listed(request, resolved))


def _listed(request: HttpRequest, resolved: ResolvedSae) -> HttpResponse:
    page = pair_list.page(resolved, Choice.of(request.GET.dict()))
    response = pages.show(request, page)
    if page.too_slow:
        response["Cache-Control"] = "no-store"
    return response


@require_safe
def pair_list_json(request: HttpRequest, ref: str) -> HttpResponse:
    resolved = saes.resolve(ref)
    try:
        found = pair_list.as_json(resolved, Choice.of(request.GET.dict()))
    except TooSlow as slow:
        return too_slow(slow)
    return pages.of_run(request, resolved.run, lambda: pages.as_json(found))


@require_safe
def pair_list_csv(request: HttpRequest, ref: str) -> HttpResponse | StreamingHttpResponse:
    """Every pair that is asked for; what makes no sense in the address is refused."""
    resolved, wanted = saes.resolve(ref), Choice.of(request.GET.dict())
    if odd := [*wanted.ignored, *(name for name in request.GET if name not in pair_list.PARAMETERS)]:
        sentence = f"Not understood: {', '.join(odd)}. Known are {', '.join(pair_list.PARAMETERS)}.\n"
        return HttpResponse(sentence, status=400, content_type="text/plain; charset=utf-8")
    name = f"{resolved.sae.slug}-r{resolved.run.number}-{wanted.side}-pairs.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(_csv(resolved, wanted), content_type="text/csv; charset=utf-8", headers=headers)


def _csv(resolved: ResolvedSae, wanted: Choice) -> Iterator[str]:
    writer = csv.writer(Line())
    yield writer.writerow(["cos", "mutual", "both", *(f"{n}_{c}" for n in ("first", "second") for c in _MEMBER)])
    for pair in pair_list.every(resolved, wanted):
        members = (getattr(m, c) for m in (pair.first, pair.second) for c in _MEMBER)
        yield writer.writerow([pair.cos, int(pair.mutual), pair.both, *members])


_MEMBER = ("index", "status", "density")


@require_safe
def pair_detail(request: HttpRequest, ref: str, first: int, second: int) -> HttpResponse:
    """Show two latents side by side."""
    try:
        resolved = links.opened(request, ref)
    except NotReady:
        return redirect("sae_detail", ref)
    return pages.of_run(
        request, resolved.run, lambda: pages.show(request, pair_page.page(resolved, first, second))
    )


@require_safe
def pair_json(request: HttpRequest, ref: str, first: int, second: int) -> HttpResponse:
    resolved = links.opened(request, ref)
    build = lambda: pages.as_json(pair_page.as_json(resolved, first, second))  # noqa: E731
    return pages.kept(request, resolved, build, more=compared(resolved))
