"""manage.py cancel_run SAE_OR_RUN: stop a run that waits or computes."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.errors import NotFound
from browser.queries.runs import named
from sae_backend import queue
from sae_backend.models import UNFINISHED


class Command(BaseCommand):
    help = "Cancel a run; what it has computed is kept for a while, and resume_run goes on with it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("run", help="a job's number, or an SAE by name or id: its unfinished run")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            run = named(options["run"], UNFINISHED)
        except NotFound as error:
            raise CommandError(f"{error.heading}. {error.sentence}") from error
        if not queue.cancel(run.pk):
            run.refresh_from_db()
            raise CommandError(f"job {run.pk}, {run}, is {run.state}: there is nothing to cancel")
        self.stdout.write(f"job {run.pk}, {run}, is cancelled; resume_run {run.pk} goes on with it")
