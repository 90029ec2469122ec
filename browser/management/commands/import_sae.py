"""manage.py import_sae PATH --model NAME --dataset NAME: a checkpoint to pages, with its progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.management.progress import follow
from sae_backend import intake
from sae_backend.models import Dataset, LanguageModel
from sae_backend.storage import StorageError


class Command(BaseCommand):
    help = "Import an SAE checkpoint (file or folder) and compute its pages."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("path", type=Path)
        parser.add_argument("--model", required=True, help="name of the language model it was trained on")
        parser.add_argument("--dataset", help="compute pages on this dataset; without it the SAE is only imported")
        parser.add_argument("--name", help="what pages call it; default: the name of the file or folder")
        parser.add_argument("--hook-name", help="TransformerLens spelling, where the file does not say")
        parser.add_argument("--k", type=int, help="latents kept per token, where the file does not say")
        parser.add_argument("--series", default="", help="of checkpoints in training that it is one of; with --step")
        parser.add_argument("--step", type=int, help="of training, where names do not say")
        parser.add_argument("--no-wait", action="store_true", help="return at once; the jobs page shows progress")

    def handle(self, *args: Any, **options: Any) -> None:
        path = options["path"].resolve()
        lm = _named(LanguageModel.objects.all(), "language model", options["model"])
        overrides = {k: options[k] for k in ("hook_name", "k") if options[k] is not None}
        if bool(options["series"]) != (options["step"] is not None):
            raise CommandError("--series and --step go together: the name of the series, and the step of this one")
        of_series = options["series"], options["step"]
        try:
            row = intake.ask(options["name"] or path.stem, path, lm, _dataset(options), overrides, *of_series)
        except (intake.IntakeError, StorageError) as error:
            raise CommandError(str(error)) from error
        if options["no_wait"]:
            self.stdout.write("queued; see /jobs")
        else:
            follow([row.pk], self.stdout)


def _dataset(options: dict[str, Any]) -> Dataset | None:
    if options["dataset"] is None:
        return None
    return _named(Dataset.objects.filter(lm__name=options["model"]), "dataset", options["dataset"])


def _named(rows: Any, what: str, name: str) -> Any:
    row = rows.filter(name=name).first()
    if row is None:
        known = ", ".join(rows.values_list("name", flat=True)) or "none yet"
        raise CommandError(f"no {what} is called {name!r}; there are: {known}")
    return row
