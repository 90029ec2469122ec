"""Addresses that people pass on: opened, spelt whole, and the citation and embed of a latent."""

from __future__ import annotations

from django.http import HttpRequest
from django.urls import reverse

from browser import pages
from browser.citation import Citation
from browser.errors import LatentNotFound
from browser.queries import saes
from browser.queries.jump import split
from browser.queries.latent_page import View
from browser.queries.saes import ResolvedSae
from sae_backend import managing

FRAMES = {"iframe", "frame", "embed", "object"}


def opened(request: HttpRequest, ref: str) -> ResolvedSae:
    """What an address means; a run that it is pinned to is kept from now on, where a reader opened it."""
    resolved = saes.resolve(ref)
    if resolved.pinned and by_reader(request):
        managing.share(resolved.run)
    return resolved


def by_reader(request: HttpRequest) -> bool:
    """Whether somebody follows a link, and no crawler or preview.

    Browsers say which navigations are people's own and what stands in a frame; a program brings a token of ours. Plain
    HTTP has no Sec-Fetch: there the script of a pinned page asks for the citation at the reader's first gesture.
    """
    said = request.headers
    if "prefetch" in said.get("Sec-Purpose", "") or request.method == "HEAD":
        return False
    if pages.by_token(request) or said.get("Sec-Fetch-User") == "?1" or said.get("Sec-Fetch-Dest") in FRAMES:
        return True
    elsewhere = split(said.get("Referer", ""))
    by_frame = request.path_info.endswith("/embed") and "Sec-Fetch-Dest" not in said
    return by_frame and elsewhere is not None and elsewhere.netloc not in ("", request.get_host())


def absolute(request: HttpRequest, name: str, *args: str | int) -> str:
    """The whole address of a page, as this site was asked."""
    return request.build_absolute_uri(reverse(name, args=args))


def citation(request: HttpRequest, resolved: ResolvedSae, index: int, view: View) -> Citation:
    """How a latent is cited as it is seen now."""
    if index >= resolved.sae.d_sae:
        raise LatentNotFound(resolved.sae, index, resolved.address)
    at = resolved.pin, index
    url, embed = absolute(request, "latent_detail", *at), absolute(request, "latent_embed", *at)
    return Citation(resolved, index, url + view.query(), embed + view.query(context="", layout="kwic"))


def sae_citation(request: HttpRequest, resolved: ResolvedSae, query: str = "") -> Citation:
    """How an SAE's run is cited, with its table as it is sorted and filtered now."""
    return Citation(resolved, None, absolute(request, "sae_detail", resolved.pin) + query)


def picture(request: HttpRequest, resolved: ResolvedSae, index: int) -> str:
    """The address of a latent's card; with another version of the site or name it is another picture and address."""
    return f"{absolute(request, 'latent_card', resolved.pin, index)}?v={pages.version_of(resolved.sae)}"
