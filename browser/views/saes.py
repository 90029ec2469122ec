"""The home page, an SAE's page, and the data of both."""

from __future__ import annotations

from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.encoding import iri_to_uri
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from browser import exports, links, pages
from browser.errors import NotReady, TooSlow
from browser.queries import latent_list, runs, sae_list, sae_page, saes, scatter
from browser.queries.latent_list import Filter
from browser.queries.latents import with_tokens
from browser.views.runs import job

LARGEST_PAGE = 1000  # rows of one latents.json
FILES = {
    "csv": (exports.latents_csv, "text/csv; charset=utf-8"),
    "parquet": (exports.latents_parquet, "application/vnd.apache.parquet"),
}


@require_safe
@never_cache
def home(request: HttpRequest) -> HttpResponse:
    return pages.show(request, sae_list.page(sae_list.Choice.of(request.GET)))


@require_safe
@never_cache
def sae_list_json(request: HttpRequest) -> HttpResponse:
    return pages.as_json({"saes": [row.as_json() for row in sae_list.rows()]})


@require_safe
@never_cache
def sae_list_csv(request: HttpRequest) -> StreamingHttpResponse:
    rows = [row.as_json() for row in sae_list.rows()]
    lines = exports.as_csv(sae_list.EXPORTED, rows)
    headers = {"Content-Disposition": 'attachment; filename="saes.csv"'}
    return StreamingHttpResponse(lines, content_type="text/csv; charset=utf-8", headers=headers)


@require_safe
def sae_detail(request: HttpRequest, ref: str) -> HttpResponse:
    """The SAE's page, or the progress of its first run."""
    try:
        resolved = links.opened(request, ref)
    except NotReady as waiting:
        return _progress(request, waiting)
    newer = saes.newer_run(resolved)
    page = lambda: _detail(request, sae_page.page(resolved, _filter(request), newer))  # noqa: E731
    return pages.of_run(request, resolved.run, page, (newer.pk if newer else 0, resolved.sae.series_at))


def _detail(request: HttpRequest, page: sae_page.SaePage) -> HttpResponse:
    response = pages.show(request, page)
    if page.table.too_slow:
        response["Cache-Control"] = "no-store"
    return response


@never_cache
def _progress(request: HttpRequest, waiting: NotReady) -> HttpResponse:
    found = job(request, waiting.run.pk) if waiting.run else None
    return pages.show(request, sae_page.SaeProgress(waiting.sae, found))


@require_safe
def sae_json(request: HttpRequest, ref: str) -> HttpResponse:
    try:
        resolved = links.opened(request, ref)
    except NotReady as waiting:
        found = runs.page(waiting.run.pk).progress if waiting.run else None
        return pages.as_json(sae_page.progress_json(waiting.sae, found))
    return pages.of_run(request, resolved.run, lambda: pages.as_json(sae_page.as_json(resolved)))


@require_safe
def sae_latents_json(request: HttpRequest, ref: str) -> HttpResponse:
    """One page of the table; `limit` up to LARGEST_PAGE rows, `next` leads on."""
    resolved, wanted = saes.resolve(ref), _filter(request)
    limit = request.GET.get("limit", "")
    size = min(LARGEST_PAGE, max(1, int(limit))) if limit.isdecimal() and len(limit) < 10 else latent_list.PAGE
    try:
        rows = sae_page.latents_json(resolved, wanted, size)
    except TooSlow as slow:
        return too_slow(slow)
    return pages.of_run(request, resolved.run, lambda: pages.as_json(rows))


@require_safe
def sae_latents_file(request: HttpRequest, ref: str, kind: str) -> HttpResponse | StreamingHttpResponse:
    """Every latent that the filter lets through, not only a page of them; by index unless another order is asked.

    What makes no sense in the address is refused: nobody would see in a file that it was left out.
    """
    resolved = saes.resolve(ref)
    wanted = latent_list.read_filter({"sort": "index", **request.GET.dict()}, request.GET.getlist("status"))
    if odd := [*wanted.ignored, *(name for name in request.GET if name not in latent_list.PARAMETERS)]:
        sentence = f"Not understood: {', '.join(odd)}. Known are {', '.join(latent_list.PARAMETERS)}.\n"
        return HttpResponse(sentence, status=400, content_type="text/plain; charset=utf-8")
    write, content_type = FILES[kind]
    name = f"{resolved.sae.slug}-r{resolved.run.number}-latents.{kind}"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    rows = write(resolved, with_tokens(wanted, resolved.sae.lm))
    return StreamingHttpResponse(rows, content_type=content_type, headers=headers)


@require_safe
def sae_scatter_json(request: HttpRequest, ref: str) -> HttpResponse:
    resolved = saes.resolve(ref)
    try:
        return pages.of_run(request, resolved.run, lambda: pages.as_json(scatter.scatter_json(resolved)))
    except TooSlow as slow:
        return too_slow(slow)


@require_safe
def sae_by_name(request: HttpRequest, slug: str, rest: str = "") -> HttpResponse:
    """Names are for people: the slug leads to the identity, whatever of the SAE is asked for."""
    sae = saes.called(slug)
    if sae is None:
        raise Http404(slug)
    return _moved(request, reverse("sae_detail", args=[sae.public_id]) + rest.rstrip("/"))


@require_safe
def without_slash(request: HttpRequest, **_: str | int) -> HttpResponse:
    """No address ends with a slash; people type one."""
    return _moved(request, request.path.rstrip("/"))


def _moved(request: HttpRequest, path: str) -> HttpResponse:
    query = request.META.get("QUERY_STRING", "")
    return redirect(iri_to_uri(path) + (f"?{query}" if query else ""))


def _filter(request: HttpRequest) -> Filter:
    return latent_list.read_filter(request.GET.dict(), request.GET.getlist("status"))


def too_slow(slow: TooSlow) -> HttpResponse:
    return pages.as_json({"error": "too slow", "message": slow.sentence}, 503)
