"""manage.py rename_sae SAE NAME: call an SAE otherwise."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from browser.management.wishes import granted, sae_called
from sae_backend import managing


class Command(BaseCommand):
    help = "Rename an SAE; addresses with its old name go on leading to it."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("sae", help="an SAE by name or id")
        parser.add_argument("name", help="what pages are to call it")

    def handle(self, *args: Any, **options: Any) -> None:
        sae = sae_called(options["sae"])
        with granted():
            managing.rename(sae, options["name"])
        self.stdout.write(f"sae:{sae.public_id} is called {sae.name}, at /s/{sae.slug}")
