"""manage.py delete_sae SAE: take an SAE from the site, with all its runs and files."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.management.wishes import granted, sae_called
from browser.sae_forms import DeleteForm
from sae_backend import managing


class Command(BaseCommand):
    help = "Delete an SAE with its runs, files and tables; its addresses then say so. This cannot be undone."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("sae", help="an SAE by name or id")
        parser.add_argument("--confirm", help="its name, once more; without it, it is asked for")

    def handle(self, *args: Any, **options: Any) -> None:
        sae = sae_called(options["sae"])
        typed = options["confirm"]
        if typed is None:
            typed = input(f"Type the name of sae:{sae.public_id}, {sae.name}, to delete it with all its runs: ")
        form = DeleteForm(sae, {"confirm": typed})
        if not form.is_valid():
            raise CommandError(str(form.errors["confirm"][0]))
        with granted():
            managing.delete(sae)
        self.stdout.write(f"{sae.name} is deleted; workers remove its files and tables")
