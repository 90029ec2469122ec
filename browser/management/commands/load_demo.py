"""manage.py load_demo: the demo's language model, text and SAEs, computed by the workers; repeating it is quick."""

from __future__ import annotations

import hashlib
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from browser.management.progress import follow
from sae_backend import intake, series
from sae_backend.models import Dataset, LanguageModel, Run, SaeImport
from sae_backend.storage import StorageError

MODEL, DATASET, CTX_LEN = "pystdlib-gpt2-5m", "Python standard library", 256
HOOK = "blocks.2.hook_resid_post"
SAES: tuple[tuple[str, dict[str, str]], ...] = (  # the tour's first
    ("resid_post_2_topk32_4096", {}),
    ("resid_post_2_topk32_1024", {}),
    ("resid_post_2_topk16_1024", {}),
    ("resid_post_2_jumprelu_4096", {}),
    ("resid_post_2_topk32_8192", {}),
    ("resid_post_2_topk32_4096_ckpts/step_00087.pt", {"hook_name": HOOK}),
    ("resid_post_2_topk32_4096_ckpts/step_00878.pt", {"hook_name": HOOK}),
)


SERIES = "resid_post_2_topk32_4096"
STEPS = {SERIES: 2929, f"{SERIES} step_00087": 87, f"{SERIES} step_00878": 878}  # of 2,048 tokens


class Command(BaseCommand):
    help = "Load the demo and compute it through the workers."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--tokens", type=int, default=1_000_000, help="of the standard library, at most")
        parser.add_argument("--saes", type=int, default=len(SAES), help="how many, the tour's first")

    def handle(self, *args: Any, **options: Any) -> None:
        lm = LanguageModel.objects.filter(name=MODEL).first()
        dataset = Dataset.objects.filter(lm=lm, name=DATASET, ready=True).first() if lm else None
        if lm is None or dataset is None:
            lm, dataset = self._text(options["tokens"])
        imports = [self._import(path, extra, lm, dataset) for path, extra in SAES[: options["saes"]]]
        follow([row.pk for row in imports], self.stdout)

    def _text(self, tokens: int) -> tuple[LanguageModel, Dataset]:
        from sae_backend.core.language_model import LanguageModelError
        from sae_backend.registry import register_dataset, register_lm

        self.stdout.write("Reading the language model and tokenizing the standard library …")
        try:
            lm = register_lm(MODEL, str(settings.BASE_DIR / "demo" / "model"))
        except (LanguageModelError, StorageError) as error:
            raise CommandError(str(error)) from error
        return lm, register_dataset(DATASET, "this machine's Python", lm, _shuffled(), CTX_LEN, tokens)

    def _import(self, path: str, extra: dict[str, str], lm: LanguageModel, dataset: Dataset) -> SaeImport:
        """The import as it stands, or a new one where there is none or it failed."""
        source = settings.BASE_DIR / "demo" / "saes" / path
        name = path.removesuffix(".pt").replace("_ckpts/", " ")
        row = SaeImport.objects.filter(name=name, lm=lm, dataset=dataset).order_by("-pk").first()
        stopped = (Run.State.FAILED, Run.State.CANCELLED)
        if row and row.state != SaeImport.State.FAILED and not (row.run and row.run.state in stopped):
            return _in_series(row)
        return intake.ask(name, source, lm, dataset, extra, SERIES if name in STEPS else "", STEPS.get(name))


def _in_series(row: SaeImport) -> SaeImport:
    """An SAE that an earlier version brought in takes its place among the steps."""
    if row.sae and row.name in STEPS and row.sae.step is None:
        series.assign(row.sae, SERIES, STEPS[row.name])
    return row


def _shuffled() -> list[tuple[str, str]]:
    """The standard library's files in an order of no meaning, so that a part stands for the whole."""
    from demo.corpus import documents

    return sorted(documents(), key=lambda d: hashlib.sha256(d[0].encode()).digest())
