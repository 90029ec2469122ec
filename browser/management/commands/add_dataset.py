"""manage.py add_dataset NAME PATH --model NAME: tokenize text into contexts and store them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from sae_backend.models import Dataset, LanguageModel
from sae_backend.storage import StorageError


class Command(BaseCommand):
    help = "Store text for runs: a folder of text files, a text file, or .jsonl with a text field."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what pages call it")
        parser.add_argument("path", type=Path)
        parser.add_argument("--model", required=True, help="name of the language model whose tokenizer reads it")
        parser.add_argument("--ctx-len", type=int, help="tokens in a context; default: the model's, at most 256")
        parser.add_argument("--max-tokens", type=int, help="stop after so many tokens")
        parser.add_argument("--field", default="text", help="field of a .jsonl file")
        parser.add_argument("--suffix", action="append", default=[], help="of the files to read in a folder")

    def handle(self, *args: Any, **options: Any) -> None:
        from sae_backend.core.language_model import LanguageModelError
        from sae_backend.core.text import TextError, documents
        from sae_backend.registry import register_dataset

        lm = _language_model(options["model"])
        ctx_len = options["ctx_len"] or min(256, lm.n_ctx)
        text = documents(options["path"].resolve(), options["field"], tuple(options["suffix"]))
        source = str(options["path"].resolve())
        there = Dataset.objects.filter(name=options["name"], lm=lm, ctx_len=ctx_len, ready=True).exists()
        try:
            row = register_dataset(options["name"], source, lm, text, ctx_len, options["max_tokens"])
        except (LanguageModelError, StorageError, TextError) as error:
            raise CommandError(str(error)) from error
        made = f"; made on {row.created_at:%Y-%m-%d} and not read again: other text needs another name" if there else ""
        self.stdout.write(f"{row.name}: {row.n_contexts:,} contexts of {row.ctx_len} tokens{made}")


def _language_model(name: str) -> LanguageModel:
    row = LanguageModel.objects.filter(name=name).first()
    if row is None:
        known = ", ".join(LanguageModel.objects.values_list("name", flat=True)) or "none yet"
        raise CommandError(f"no language model is called {name!r} (there are: {known}); add it with add_model")
    return row
