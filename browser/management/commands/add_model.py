"""manage.py add_model NAME SOURCE: register a language model from a folder or a hub name."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from sae_backend.storage import StorageError


class Command(BaseCommand):
    help = "Register a language model: a local folder (config.json, tokenizer, safetensors) or a hub name."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what pages call it")
        parser.add_argument("source", help="folder or hub name")
        parser.add_argument("--revision", default="", help="branch, tag or commit on the hub")

    def handle(self, *args: Any, **options: Any) -> None:
        from sae_backend.core.language_model import LanguageModelError
        from sae_backend.registry import register_lm

        try:
            lm = register_lm(options["name"], options["source"], options["revision"])
        except (LanguageModelError, StorageError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{lm.name}: {lm.n_layers} layers, d_model {lm.d_model}, vocabulary {lm.d_vocab}")
