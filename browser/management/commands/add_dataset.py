"""manage.py add_dataset NAME PATH --model NAME: tokenize text into contexts and store them, here or by a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.management.adding import carried_out
from sae_backend.models import Addition, Dataset, LanguageModel

KEPT = ("ctx_len", "max_tokens", "field", "files", "split")


class Command(BaseCommand):
    help = (
        "Store text for runs: a folder, a file of text, .jsonl or .parquet (perhaps .gz or .zst), or with --hub a "
        "dataset of the hub; with --like a dataset that is here, for another language model."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what pages call it")
        parser.add_argument("path", help="folder or file; with --hub or --like, a name")
        parser.add_argument("--model", required=True, help="name of the language model whose tokenizer reads it")
        parser.add_argument("--hub", action="store_true", help="the path is the name of a dataset on the hub")
        parser.add_argument("--revision", default="", help="its branch, tag or commit")
        parser.add_argument("--files", help="which of its files: a pattern, say 'en/*.jsonl.gz'")
        parser.add_argument("--split", help="which of its splits; default: train, where there is one")
        parser.add_argument("--like", action="store_true", help="the path is the name of a dataset that is here")
        parser.add_argument("--ctx-len", type=int, help="tokens in a context; default: the model's, at most 256")
        parser.add_argument("--max-tokens", type=int, help="stop after so many tokens")
        parser.add_argument("--field", help="field of JSON lines or column of Parquet; default: text, or the only one")
        parser.add_argument("--suffix", action="append", default=[], help="of the files to read in a folder")
        parser.add_argument("--queue", action="store_true", help="leave it to a worker; /datasets shows how it goes")

    def handle(self, *args: Any, **options: Any) -> None:
        lm = _language_model(options["model"])
        wanted = {key: options[key] for key in KEPT if options[key] is not None}
        row = _again(options, lm, wanted) if options["like"] else _new(options, lm, wanted)
        found = Dataset.objects.filter(name=row.name, lm=lm, ctx_len=wanted.get("ctx_len") or min(256, lm.n_ctx))
        there = found.filter(ready=True).exists()
        made = carried_out(row, options["queue"], self.stdout).made_dataset
        if made is not None:
            again = f"; made on {made.created_at:%Y-%m-%d} and not read again: other text needs another name"
            self.stdout.write(
                f"{made.name}: {made.n_contexts:,} contexts of {made.ctx_len} tokens{again if there else ''}"
            )


def _new(options: dict[str, Any], lm: LanguageModel, wanted: dict[str, Any]) -> Addition:
    source = options["path"] if options["hub"] else str(Path(options["path"]).resolve())
    return Addition(
        kind=Addition.Kind.DATASET, origin=Addition.Origin.HUB if options["hub"] else Addition.Origin.FOLDER,
        name=options["name"], source=source, revision=options["revision"], lm=lm,
        options={**wanted, "suffixes": options["suffix"], "anywhere": True, "token": True},
    )  # fmt: skip


def _again(options: dict[str, Any], lm: LanguageModel, wanted: dict[str, Any]) -> Addition:
    other = Dataset.objects.filter(name=options["path"]).exclude(recipe={}).first()
    if other is None:
        raise CommandError(f"no dataset is called {options['path']!r} whose source is known")
    recipe = dict(other.recipe)
    more = {**recipe.pop("options", {}), **wanted, "anywhere": True, "token": True}
    return Addition(kind=Addition.Kind.DATASET, name=options["name"], lm=lm, options=more, **recipe)


def _language_model(name: str) -> LanguageModel:
    row = LanguageModel.objects.filter(name=name).first()
    if row is None:
        known = ", ".join(LanguageModel.objects.values_list("name", flat=True)) or "none yet"
        raise CommandError(f"no language model is called {name!r} (there are: {known}); add it with add_model")
    return row
