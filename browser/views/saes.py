"""The home page and an SAE's page."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from browser.queries import saes


def sae_list(request: HttpRequest) -> HttpResponse:
    from django.shortcuts import render
    return render(request, "browser/base.html")


sae_list_json = sae_list


def sae_detail(request: HttpRequest, ref: str) -> HttpResponse:
    from django.shortcuts import render
    saes.resolve(ref)
    return render(request, "browser/base.html")


sae_json = sae_latents_json = sae_latents_csv = sae_scatter_json = sae_by_name = sae_detail
