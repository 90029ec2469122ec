"""The demo's language model and an SAE of it over a short text, as rows that jobs can work on."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from sae_backend import registry
from sae_backend.models import Dataset, LanguageModel, Run, Sae, SaeImport

DEMO = Path(__file__).resolve().parents[2] / "demo"
SAE = DEMO / "saes" / "resid_post_2_topk16_1024"
CTX_LEN, CONTEXTS = 32, 48
QUICK = {"dtype": "float32", "batch_contexts": 8, "shard_contexts": 8, "shard_latents": 128, "ce_contexts": 2}


@lru_cache
def text() -> str:
    """Python source, which the model was trained on."""
    return (DEMO / "training" / "lm.py").read_text() * 3 + (DEMO / "train.py").read_text() * 3


def a_language_model() -> LanguageModel:
    """The same row for each test, number included: what a worker has loaded for it is still right."""
    if not _registered:
        _registered.append(registry.register_lm("demo", str(DEMO / "model")))
    [row] = _registered
    row.save(force_insert=not LanguageModel.objects.filter(pk=row.pk).exists())
    return row


_registered: list[LanguageModel] = []


def a_dataset(lm: LanguageModel, contexts: int = CONTEXTS, name: str = "source") -> Dataset:
    documents = [(f"{i}.py", text()) for i in range(4)]
    return registry.register_dataset(name, "demo", lm, documents, CTX_LEN, contexts * CTX_LEN)


def an_import(lm: LanguageModel, dataset: Dataset | None = None, source: Path = SAE, **options: Any) -> SaeImport:
    return SaeImport.objects.create(name=source.stem, source=str(source), lm=lm, dataset=dataset, options=options)


def a_sae(lm: LanguageModel) -> Sae:
    from sae_backend import jobs

    row = an_import(lm)
    jobs.import_sae(row.pk)
    row.refresh_from_db()
    assert row.sae is not None, row.error
    return row.sae


def stage(run: Run) -> str:
    run.refresh_from_db()
    return run.state
