"""manage.py pin_run SAE NUMBER [--unpin]: keep a run for ever, or no longer."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from browser.management.wishes import granted, run_called
from sae_backend import managing


class Command(BaseCommand):
    help = "Keep a run for ever, whatever cleaning there is; --unpin lets it go again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("sae", help="an SAE by name or id")
        parser.add_argument("number", help="of its run: 3 or r3")
        parser.add_argument("--unpin", action="store_true", help="keep it no longer than others")

    def handle(self, *args: Any, **options: Any) -> None:
        with granted():
            run = run_called(options["sae"], options["number"])
            managing.pin(run, not options["unpin"])
        self.stdout.write(f"{run} is {'kept no longer than others' if options['unpin'] else 'kept for ever'}")
