"""manage.py rerun_sae SAE --dataset NAME: compute an SAE that is here again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.management.wishes import granted, sae_called
from browser.sae_forms import RerunForm
from sae_backend import managing
from sae_backend.managing import DTYPES


class Command(BaseCommand):
    help = "Compute an SAE again, on another dataset or otherwise; its pages show the new run once it is done."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("sae", help="an SAE by name or id")
        parser.add_argument("--dataset", required=True, help="a dataset of its language model, by name")
        parser.add_argument("--max-tokens", type=int, help="read no more of the dataset than this; default: all of it")
        parser.add_argument("--dtype", choices=DTYPES, help="default: that of the run before")

    def handle(self, *args: Any, **options: Any) -> None:
        sae = sae_called(options["sae"])
        given = {field: options[field] for field in RerunForm.base_fields if options[field] is not None}
        form = RerunForm(sae, given)
        if not form.is_valid():
            raise CommandError(" ".join(str(error) for errors in form.errors.values() for error in errors))
        with granted():
            run = managing.rerun(sae, **form.cleaned_data)
        self.stdout.write(f"job {run.pk}, {run}, is queued; see /jobs/{run.pk}")
