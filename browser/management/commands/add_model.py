"""manage.py add_model NAME SOURCE: add a language model from a folder or the hub, here or by a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from browser.management.adding import carried_out
from sae_backend.models import Addition


class Command(BaseCommand):
    help = "Add a language model: a local folder (config.json, tokenizer, safetensors) or a hub name."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what pages call it")
        parser.add_argument("source", help="folder, or name on the hub")
        parser.add_argument("--revision", default="", help="branch, tag or commit on the hub")
        parser.add_argument("--queue", action="store_true", help="leave it to a worker; /models shows how it goes")

    def handle(self, *args: Any, **options: Any) -> None:
        source, here = options["source"], Path(options["source"]).resolve()
        folder = here.is_dir() or source.startswith((".", "/", "~"))
        row = Addition(
            kind=Addition.Kind.MODEL, name=options["name"], source=str(here) if folder else source,
            origin=Addition.Origin.FOLDER if folder else Addition.Origin.HUB, revision=options["revision"],
            options={"anywhere": True, "token": True},
        )  # fmt: skip
        lm = carried_out(row, options["queue"], self.stdout).made_lm
        if lm is not None:
            self.stdout.write(f"{lm.name}: {lm.n_layers} layers, d_model {lm.d_model}, vocabulary {lm.d_vocab}")
