"""What is passed on of a latent: its citation, its embed, its picture, and oEmbed, which finds them by its address."""

from __future__ import annotations

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.clickjacking import xframe_options_exempt
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_safe

from browser import card, links, pages
from browser.citation import Citation
from browser.errors import NotFound
from browser.queries import latent_card as cards
from browser.queries import latent_page, sae_card, saes
from browser.queries import oembed as answers
from browser.queries.latent_list import read_filter
from browser.queries.latent_page import View
from browser.queries.latent_share import CitePage, EmbedPage
from browser.queries.saes import ResolvedSae
from sae_backend import managing

YEAR = 365 * pages.DAY
XML = "Only JSON is answered here: leave format out, or ask for format=json."


@csrf_exempt  # it changes nothing but that the run is kept, which whoever may read may ask for
@require_http_methods(["GET", "HEAD", "POST"])
def latent_cite(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    """How to cite and embed a latent; who asks this passes the run's link on, which keeps the run."""
    resolved, citation = _cited(request, ref, index)
    page = CitePage(citation, kept=resolved.run.shared_at is not None)
    if request.method == "POST":
        return pages.show(request, page)
    return pages.of_run(request, resolved.run, lambda: pages.show(request, page), int(page.kept))


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def latent_cite_json(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    resolved, citation = _cited(request, ref, index)
    if request.method == "POST":
        return pages.as_json(citation.as_json())
    return pages.kept(request, resolved, lambda: pages.as_json(citation.as_json()))


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def sae_cite(request: HttpRequest, ref: str, as_json: bool = False) -> HttpResponse:
    """The same for a whole SAE."""
    resolved = links.opened(request, ref)
    citation = links.sae_citation(request, resolved, read_filter(request.GET.dict()).query(after=None))
    if request.method == "POST" or links.by_reader(request):
        managing.share(resolved.run)
    page = CitePage(citation, kept=resolved.run.shared_at is not None)
    build = lambda: pages.as_json(citation.as_json()) if as_json else pages.show(request, page)  # noqa: E731
    if request.method == "POST":
        return build()
    if as_json:
        return pages.kept(request, resolved, build)
    return pages.of_run(request, resolved.run, build, int(page.kept))


def _cited(request: HttpRequest, ref: str, index: int) -> tuple[ResolvedSae, Citation]:
    """A citation; a crawler, which posts nothing and clicks nothing, may read it too, but keeps no run by that."""
    resolved = links.opened(request, ref)
    citation = links.citation(request, resolved, index, View.of(request.GET))
    if request.method == "POST" or links.by_reader(request):
        managing.share(resolved.run)
    return resolved, citation


@require_safe
@xframe_options_exempt
def latent_embed(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    """A latent without scripts, for a frame of another site; what is wrong is said in the frame too."""
    try:
        response = _embed(request, ref, index)
    except NotFound as error:
        response = render(request, "browser/embed_not_found.html", {"error": error}, status=error.status)
    response["Content-Security-Policy"] = (
        "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors {' '.join(settings.EMBED_FRAME_ANCESTORS)}"
    )
    return response


def _embed(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    resolved, view = links.opened(request, ref), View.of(request.GET)
    citation = links.citation(request, resolved, index, view)

    def build() -> HttpResponse:
        return pages.show(request, EmbedPage(latent_page.page(resolved, index, view), citation))

    return pages.kept(request, resolved, build)


@require_safe
def latent_card(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    """The picture of a latent for whoever shows a link to it; one that names its version may be kept a year."""
    resolved = saes.resolve(ref)  # previews ask for it, of pages that nobody has read
    return _drawn(request, resolved, lambda: cards.facts(resolved, index))


@require_safe
def sae_picture(request: HttpRequest, ref: str) -> HttpResponse:
    """The same of an SAE."""
    resolved = saes.resolve(ref)
    return _drawn(request, resolved, lambda: sae_card.facts(resolved))


def _drawn(request: HttpRequest, resolved: ResolvedSae, facts: Callable[[], card.Facts]) -> HttpResponse:
    age = YEAR if request.GET.get("v") == pages.version_of(resolved.sae) else pages.DAY

    def build() -> HttpResponse:
        try:
            return HttpResponse(card.draw(facts()), content_type="image/png")
        except card.BusyError:
            return HttpResponse("Other pictures are being drawn.", "text/plain", 503, headers={"Retry-After": "5"})

    return pages.kept(request, resolved, build, age)


@require_safe
def oembed(request: HttpRequest) -> HttpResponse:
    """The embed of the latent whose address is given, as https://oembed.com has it."""
    if request.GET.get("format", "json") != "json":
        return pages.as_json({"error": "not implemented", "message": XML}, 501)
    try:
        asked = answers.read(request.GET, request.get_host())
        resolved = saes.resolve(asked.ref)  # kept once its frame is read somewhere
        citation = links.citation(request, resolved, asked.index, asked.view)
    except NotFound as error:
        return pages.as_json({"error": error.kind, "message": f"{error.heading}. {error.sentence}"}, error.status)
    home, picture = links.absolute(request, "home"), links.picture(request, resolved, asked.index)
    return pages.as_json(answers.answer(citation, asked, home, picture))
