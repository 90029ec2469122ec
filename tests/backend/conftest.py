"""What tests of jobs begin with: the demo's language model, text and SAE as rows, and an empty queue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_backend.models import Dataset, LanguageModel, Sae
from tests import hub
from tests.backend import demo, messages


@pytest.fixture
def quiet(settings: Any) -> None:
    """Nothing waits in Redis, and figures are exact."""
    settings.COMPUTE_DTYPE = "float32"
    messages.forget()


@pytest.fixture
def lm() -> LanguageModel:
    return demo.a_language_model()


@pytest.fixture
def dataset(lm: LanguageModel) -> Dataset:
    return demo.a_dataset(lm)


@pytest.fixture
def sae(lm: LanguageModel) -> Sae:
    return demo.a_sae(lm)


@pytest.fixture
def online(tmp_path: Path) -> Iterator[hub.Hub]:
    """A hub that this process asks."""
    with hub.used_here(tmp_path / "cache") as served:
        yield served
