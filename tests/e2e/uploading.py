"""A site for uploads through a real browser: one server and one worker for all tests of a module, two small models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from pytest_django.live_server_helper import LiveServer
from transformers import AutoModelForCausalLM

from sae_backend import registry
from sae_backend.models import Dataset, LanguageModel, SaeImport
from tests import formats
from tests.backend import messages
from tests.core import small
from tests.e2e import crew

CTX_LEN, CONTEXTS = 32, 12
OPEN: dict[str, Any] = {
    "OPEN_TO_ALL": True, "UPLOADS_PER_HOUR": 10_000, "MAX_OPEN_IMPORTS": 10_000, "COMPUTE_DTYPE": "float32"
}  # fmt: skip


@dataclass
class Site:
    """Where the site is, who works for it, and what is registered."""

    url: str
    workers: crew.Workers
    lm: LanguageModel  # 20 layers, 64 wide, with the fixtures' own x in its residual stream
    narrow: LanguageModel  # 48 wide, its heads together 64
    dataset: Dataset
    folder: Path  # of language models

    def last_import(self) -> SaeImport:
        return SaeImport.objects.select_related("sae", "run").order_by("-pk")[0]


@contextmanager
def site(environment: dict[str, str], folder: Path) -> Iterator[Site]:
    """Call with the database unblocked; it is empty again afterwards."""
    messages.forget()
    workers = crew.Workers({**environment, "OPEN_TO_ALL": "1"}, folder)  # as the launcher gives it to all
    with override_settings(**OPEN):
        server = LiveServer("localhost")
        try:
            lm, narrow = _language_models(folder)
            dataset = _dataset(lm)
            _dataset(narrow)
            workers.start()
            yield Site(server.url, workers, lm, narrow, dataset, folder)
        finally:
            workers.stop()
            server.stop()
            messages.forget()
            call_command("flush", verbosity=0, interactive=False)
            connection.close()


def _language_models(folder: Path) -> tuple[LanguageModel, LanguageModel]:
    wide = _of_the_fixtures(folder / "wide")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
    narrow = small.save_lm(folder / "narrow", "llama", hidden_size=48, num_hidden_layers=2, **heads)
    return registry.register_lm("gpt2-small", str(wide)), registry.register_lm("narrow", str(narrow))


def _of_the_fixtures(folder: Path) -> Path:
    """A language model that has, of each token, one of the rows that libraries were given in its residual stream.

    What attention writes the MLP takes away, so that it is there before and behind each of the blocks.
    """
    model = AutoModelForCausalLM.from_pretrained(small.save_lm(folder, n_layer=20, n_embd=64, n_head=4))
    x, embedded = formats.arrays("saelens/standard")["x"], model.transformer.wte.weight.data
    embedded.copy_(x[torch.arange(len(embedded)) % len(x)])
    model.transformer.wpe.weight.data.zero_()
    for block in model.transformer.h:
        for sublayer, written in ((block.attn, -1.0), (block.mlp, 1.0)):
            sublayer.c_proj.weight.data.zero_()
            sublayer.c_proj.bias.data.fill_(written)
    model.save_pretrained(folder)
    return folder


def _dataset(lm: LanguageModel) -> Dataset:
    text = Path(small.__file__).read_text()
    return registry.register_dataset("source", "tests", lm, [("small.py", text)], CTX_LEN, CONTEXTS * CTX_LEN)


def environment_of_workers() -> dict[str, str]:
    """Of a process that shares the tests' database and Redis."""
    given = connection.settings_dict
    host = given["OPTIONS"].get("host") or given["HOST"]
    return {**os.environ, "DATABASE_URL": f"postgres://{given['USER']}@/{given['NAME']}?host={host}"}
