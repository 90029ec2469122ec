"""The list of jobs, a job's page, the parts of both that change, and the steering of a job."""

from __future__ import annotations

from dataclasses import replace

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from browser import pages
from browser.permissions import is_staff, may_change, may_steer
from browser.queries import runs
from browser.queries.runs import RunPage, RunSteering
from sae_backend import queue

STEER = {"cancel": queue.cancel, "resume": queue.resume}


@require_safe
@never_cache
def run_list(request: HttpRequest) -> HttpResponse:
    return pages.show(request, runs.listing(request.GET.get("state", ""), is_staff(request.user)))


@require_safe
@never_cache
def runs_live(request: HttpRequest) -> HttpResponse:
    """The part of the list that changes."""
    page = runs.listing(request.GET.get("state", ""), is_staff(request.user))
    return render(request, "browser/_runs_live.html", {"page": page})


@require_safe
@never_cache
def runs_running(request: HttpRequest) -> HttpResponse:
    """What is being computed, in few words, for the home page."""
    return render(request, "browser/_running.html", {"running": runs.unfinished()})


@require_safe
@never_cache
def runs_others(request: HttpRequest) -> HttpResponse:
    """The queue and the workers, as they stand below a job."""
    return render(request, "browser/_others.html", {"others": runs.others()})


@require_safe
@never_cache
def run_list_json(request: HttpRequest) -> HttpResponse:
    listing = runs.listing(request.GET.get("state", ""), is_staff(request.user))
    jobs = [progress.as_json() for progress in (*listing.unfinished, *listing.finished)]
    imports = [runs.import_json(row) for row in listing.imports]
    pairs, workers = ([row.as_json() for row in rows] for rows in (listing.comparisons, listing.workers))
    return pages.as_json({"jobs": jobs, "imports": imports, "comparisons": pairs, "workers": workers})


def job(request: HttpRequest, pk: int) -> RunPage:
    """A job's page as this user sees it."""
    page = runs.page(pk)
    run, user = page.progress.run, request.user
    return replace(page, may_steer=may_steer(user, run), may_change=may_change(user, run.sae))


@require_safe
@never_cache
def run_detail(request: HttpRequest, pk: int) -> HttpResponse:
    return pages.show(request, job(request, pk))


@require_safe
@never_cache
def run_live(request: HttpRequest, pk: int) -> HttpResponse:
    """The part of a job's page that changes; ?inside is for the page of an SAE that waits for it."""
    return render(request, "browser/_run_live.html", {"page": job(request, pk), "inside": "inside" in request.GET})


@require_safe
@never_cache
def run_json(request: HttpRequest, pk: int) -> HttpResponse:
    return pages.as_json(job(request, pk).as_json())


@require_safe
@never_cache
def run_log(request: HttpRequest, pk: int) -> HttpResponse:
    """All that the job's workers have written down, as plain text."""
    return HttpResponse(runs.whole_log(pk), content_type="text/plain; charset=utf-8")


@require_http_methods(["GET", "HEAD", "POST"])
@never_cache
def run_steer(request: HttpRequest, pk: int, action: str) -> HttpResponse:
    """Ask whether to cancel or resume a job, which changes nothing; a POST does it and goes to the job's page."""
    page = job(request, pk)
    if not page.may_steer:
        return pages.show(request, RunSteering(page, action), 403)
    if request.method != "POST":
        return pages.show(request, RunSteering(page, action))
    STEER[action](pk)  # what is over already stays as it is, which its page shows
    return redirect("run_detail", pk)


@require_POST
@never_cache
def run_steer_json(request: HttpRequest, pk: int, action: str) -> HttpResponse:
    """The same for programs: `done` says whether the job was in a state to be cancelled or resumed."""
    if not job(request, pk).may_steer:
        return pages.as_json({"error": "not allowed", "message": RunSteering.refusal}, 403)
    done = STEER[action](pk)
    return pages.as_json({"done": done, "job": job(request, pk).as_json()})
