"""manage.py drop_run SAE NUMBER: give up a superseded or stopped run."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from browser.management.wishes import granted, run_called
from sae_backend import managing


class Command(BaseCommand):
    help = "Drop a superseded or stopped run: links pinned to it then say so. This cannot be undone."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("sae", help="an SAE by name or id")
        parser.add_argument("number", help="of its run: 3 or r3")

    def handle(self, *args: Any, **options: Any) -> None:
        with granted():
            run = run_called(options["sae"], options["number"])
            managing.drop(run)
        self.stdout.write(f"{run} is dropped; workers remove its tables")
