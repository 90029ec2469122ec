"""The list of jobs and a job's page."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render


def run_list(request: HttpRequest) -> HttpResponse:
    return render(request, "browser/base.html")


def run_detail(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "browser/base.html")


run_list_json = run_list
run_json = run_live = run_detail
