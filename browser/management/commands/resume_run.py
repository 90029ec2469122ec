"""manage.py resume_run SAE_OR_RUN: go on with a run that failed, was cancelled or lies still."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.errors import NotFound
from browser.queries.runs import named
from sae_backend import queue
from sae_backend.models import RESUMABLE


class Command(BaseCommand):
    help = "Resume a run from what it has computed."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("run", help="a job's number, or an SAE by name or id: its latest run that stopped")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            run = named(options["run"], RESUMABLE)
        except NotFound as error:
            raise CommandError(f"{error.heading}. {error.sentence}") from error
        if not queue.resume(run.pk):
            run.refresh_from_db()
            raise CommandError(f"job {run.pk}, {run}, is {run.state}: there is nothing to resume")
        self.stdout.write(f"job {run.pk}, {run}, goes on; /jobs/{run.pk} shows it")
