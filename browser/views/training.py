"""An SAE, and one of its latents, through training."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from browser import links, pages
from browser.errors import NotFound
from browser.queries import saes, training
from browser.queries.training import LatentTraining


@require_safe
@never_cache
def sae(request: HttpRequest, ref: str) -> HttpResponse:
    return pages.show(request, training.page(links.opened(request, ref)))


@require_safe
@never_cache
def sae_json(request: HttpRequest, ref: str) -> HttpResponse:
    return pages.as_json(training.page(saes.resolve(ref)).as_json())


@require_safe
@never_cache
def latent(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    return pages.show(request, _latent(request, ref, index))


@require_safe
@never_cache
def latent_json(request: HttpRequest, ref: str, index: int) -> HttpResponse:
    return pages.as_json(_latent(request, ref, index).as_json())


def _latent(request: HttpRequest, ref: str, index: int) -> LatentTraining:
    resolved = links.opened(request, ref)
    found = training.latent(resolved, index)
    if found is None:
        raise NotFound("There is no series", f"{resolved.sae.name} is not among several checkpoints of one training.")
    return found
