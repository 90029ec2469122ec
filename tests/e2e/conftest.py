"""Fixtures of tests with real processes: workers, and a language model, text and SAE for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_backend.models import Dataset, LanguageModel, Sae
from tests.backend import demo, messages
from tests.e2e import crew


@pytest.fixture
def workers(site_environment: dict[str, str], tmp_path: Path) -> Iterator[crew.Workers]:
    messages.forget()
    workers = crew.Workers(site_environment, tmp_path)
    yield workers
    workers.stop()
    messages.forget()


@pytest.fixture
def lm(transactional_db: None) -> LanguageModel:
    return demo.a_language_model()


@pytest.fixture
def dataset(lm: LanguageModel) -> Dataset:
    return demo.a_dataset(lm)


@pytest.fixture
def sae(lm: LanguageModel, settings: object) -> Sae:
    settings.COMPUTE_DTYPE = "float32"  # type: ignore[attr-defined]
    return demo.a_sae(lm)
