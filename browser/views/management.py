"""An SAE's settings: its name, what is said of it, its runs, and its end; each for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from browser import bodies, pages
from browser.permissions import may_change
from browser.queries import runs, sae_settings, saes
from browser.queries.sae_settings import SaeRefusal
from browser.sae_forms import AboutForm, DeleteForm, RenameForm, RerunForm, SeriesForm
from sae_backend import managing, series
from sae_backend.managing import ManagingError
from sae_backend.models import Sae
from sae_backend.store import StoreError

WISHES = (ManagingError, StoreError)


@require_safe
@never_cache
def sae_settings_page(request: HttpRequest, ref: str) -> HttpResponse:
    sae = saes.find(ref.partition("@")[0])
    if not may_change(request.user, sae):
        return pages.show(request, SaeRefusal(sae), 403)
    return pages.show(request, sae_settings.page(sae))


@require_POST
@never_cache
def sae_change(request: HttpRequest, ref: str, action: str, as_json: bool = False) -> HttpResponse:
    """Rename, describe, put into a series, compute again or delete, as a form or a JSON body says."""
    sae = saes.find(ref.partition("@")[0])
    if not may_change(request.user, sae):
        return _refused(request, sae, as_json)
    try:
        form = _form(action, sae, _said(request))
        if form.is_valid():
            return _done(request, sae, action, form.cleaned_data, as_json)
        return _invalid(request, sae, action, form, as_json)
    except WISHES as error:
        return _impossible(request, sae, str(error), as_json)


@require_POST
@never_cache
def run_keep(request: HttpRequest, ref: str, number: int, action: str, as_json: bool = False) -> HttpResponse:
    """Keep a run for ever, let it go again, or drop it."""
    sae = saes.find(ref.partition("@")[0])
    if not may_change(request.user, sae):
        return _refused(request, sae, as_json)
    try:
        run = sae_settings.run_of(sae, number)
        managing.drop(run) if action == "drop" else managing.pin(run, action == "pin")
    except WISHES as error:
        return _impossible(request, sae, str(error), as_json)
    if as_json:
        return pages.as_json({"job": runs.page(run.pk).as_json()})
    return redirect(reverse("sae_settings", args=[sae.public_id]) + "#runs")


# ---- what is asked -----------------------------------------------------------------------------------


def _said(request: HttpRequest) -> Mapping[str, Any]:
    """The fields of a form, or of a JSON object."""
    try:
        said = bodies.fields(request)
    except ValueError as error:
        raise ManagingError(str(error)) from error
    lists = {key: "\n".join(map(str, value)) for key, value in said.items() if isinstance(value, list)}
    return {key: "" if value is None else value for key, value in {**said, **lists}.items()}


def _form(action: str, sae: Sae, said: Mapping[str, Any]) -> forms.Form:
    plain = {"rename": RenameForm, "about": AboutForm, "series": SeriesForm}
    of_sae = {"rerun": RerunForm, "delete": DeleteForm}
    return plain[action](said) if action in plain else of_sae[action](sae, said)


# ---- what is answered --------------------------------------------------------------------------------


def _done(request: HttpRequest, sae: Sae, action: str, said: dict[str, Any], as_json: bool) -> HttpResponse:
    if action == "rerun":
        owner = request.user if request.user.is_authenticated else None
        run = managing.rerun(sae, **said, owner=owner)
        return pages.as_json({"job": runs.page(run.pk).as_json()}, 202) if as_json else redirect("run_detail", run.pk)
    if action == "delete":
        managing.delete(sae)
        return pages.as_json({"deleted": sae.public_id}) if as_json else redirect("sae_detail", sae.public_id)
    change = {
        "rename": lambda: managing.rename(sae, said["name"]),
        "series": lambda: series.assign(sae, said["series"], said["step"]),
        "about": lambda: managing.describe(sae, said),
    }
    change[action]()
    if as_json:
        return pages.as_json({"sae": sae_settings.card(sae)})
    return redirect("sae_settings", sae.public_id)


def _refused(request: HttpRequest, sae: Sae, as_json: bool) -> HttpResponse:
    if as_json:
        return pages.as_json({"error": "not allowed", "message": SaeRefusal.sentence}, 403)
    return pages.show(request, SaeRefusal(sae), 403)


def _invalid(request: HttpRequest, sae: Sae, action: str, form: forms.Form, as_json: bool) -> HttpResponse:
    if as_json:
        return pages.as_json({"error": "not valid", "fields": form.errors.get_json_data()}, 400)
    return pages.show(request, sae_settings.page(sae, forms={action: form}), 400)


def _impossible(request: HttpRequest, sae: Sae, sentence: str, as_json: bool) -> HttpResponse:
    if as_json:
        return pages.as_json({"error": "not possible", "message": sentence}, 409)
    return pages.show(request, sae_settings.page(sae, error=sentence), 409)
