"""The page of one latent, its data, the contexts of one interval, and the way to a random latent."""

from __future__ import annotations

from datetime import datetime

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.cache import patch_cache_control
from django.views.decorators.http import require_safe

from browser import links, pages
from browser.errors import NotReady
from browser.queries import latent_data, latent_page, latents, saes
from browser.queries.latent_page import View
from browser.queries.saes import ResolvedSae


@require_safe
def latent_detail(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    """Show one latent; an SAE that is not computed yet shows its progress instead."""
    try:
        resolved = links.opened(request, ref)
    except NotReady:
        return redirect("sae_detail", ref)
    view = View.of(request.GET)
    page = lambda: pages.show(request, latent_page.page(resolved, index, view))  # noqa: E731
    return pages.of_run(request, resolved.run, page, (_in_series(resolved), compared(resolved)))


def compared(resolved: ResolvedSae) -> int:
    """Changes with what other SAEs have that is like its latents; a pinned run's pages do not say that."""
    return 0 if resolved.pinned else resolved.sae.compared


def _in_series(resolved: ResolvedSae) -> datetime | None:
    """The same for the other steps of its training."""
    return None if resolved.pinned else resolved.sae.series_at


@require_safe
def latent_contexts(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    """Only the contexts of the interval that the query string names, for the page to put in place."""
    resolved, view = links.opened(request, ref), View.of(request.GET)

    def build() -> HttpResponse:
        return pages.show(request, latent_page.contexts(resolved, index, view))

    return pages.kept(request, resolved, build)


@require_safe
def latent_json(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    """Everything the page shows, and all examples, for programs."""
    resolved = links.opened(request, ref)
    url = links.absolute(request, "latent_detail", resolved.pin, index)

    def build() -> HttpResponse:
        return pages.as_json({"url": url, **latent_data.data(resolved, index)})

    return pages.kept(request, resolved, build, more=compared(resolved))


@require_safe
def latent_random(request: HttpRequest, ref: str) -> HttpResponse:
    """Go to a random latent that fired, looked at as the query string says."""
    resolved = links.opened(request, ref)
    index = latents.random_index(resolved)
    response = redirect(
        reverse("latent_detail", args=[resolved.address, index]) + View.of(request.GET).query(context="")
    )
    patch_cache_control(response, no_store=True)
    return response


@require_safe
def random_anywhere(request: HttpRequest) -> HttpResponse:
    """Go to a random latent of any SAE."""
    response = redirect("latent_random", saes.any_computed().public_id)
    patch_cache_control(response, no_store=True)
    return response
