"""Addresses that people pass on: opened, spelt whole, and the citation and embed of a latent."""

from __future__ import annotations

from django.http import HttpRequest
from django.urls import reverse

from browser import pages
from browser.citation import Citation
from browser.errors import LatentNotFound
from browser.queries import saes
from browser.queries.latent_page import View
from browser.queries.saes import ResolvedSae
from sae_backend import managing


def opened(ref: str) -> ResolvedSae:
    """What an address means; a run that it is pinned to has been shared, and is kept from now on."""
    resolved = saes.resolve(ref)
    if resolved.pinned:
        managing.share(resolved.run)
    return resolved


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


def picture(request: HttpRequest, resolved: ResolvedSae, index: int) -> str:
    """The address of a latent's card; with another version of the site or name it is another picture and address."""
    return f"{absolute(request, 'latent_card', resolved.pin, index)}?v={pages.version_of(resolved.sae)}"
