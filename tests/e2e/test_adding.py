"""Language models and text added by a real worker from a real server of the hub's HTTP, disturbed in the middle."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_backend import additions
from sae_backend.models import Addition, Dataset, LanguageModel
from tests import hub
from tests.backend import messages
from tests.core import small
from tests.e2e.crew import Workers, until

pytestmark = pytest.mark.django_db(transaction=True)
State = Addition.State
LINE = json.dumps({"text": "def half(x):\n    return x / 2\n" * 20}).encode() + b"\n"


@pytest.fixture
def served() -> Iterator[hub.Hub]:
    with hub.serving() as server:
        yield server


@pytest.fixture
def workers(site_environment: dict[str, str], served: hub.Hub, tmp_path: Path) -> Iterator[Workers]:
    messages.forget()
    crew = Workers({**site_environment, **served.environment(tmp_path / "home")}, tmp_path)
    yield crew
    crew.stop()


def came(row: Addition, *states: str) -> bool:
    row.refresh_from_db()
    return row.state in states


def ended(row: Addition, workers: Workers) -> Addition:
    over = (State.DONE, State.FAILED, State.CANCELLED)
    until(lambda: came(row, *over), lambda: f"{row.state} {row.stage} {row.error}\n{workers.log()}")
    return row


def ask(kind: str, source: str, **more: Any) -> Addition:
    return additions.ask(kind, Addition.Origin.HUB, source.rpartition("/")[2], source, **more)


def test_a_worker_adds_a_model_and_text_of_the_hub_through_a_kill_and_a_cancel(
    workers: Workers, served: hub.Hub, tmp_path: Path
) -> None:
    held = threading.Event()
    served.add("model", "org/tiny", small.save_lm(tmp_path / "m"), slow=held)
    served.add("dataset", "org/text", {"train-0.jsonl": LINE * 50, "train-1.jsonl": LINE * 50}, slow=held)
    row = ask("model", "org/tiny")
    workers.start()
    until(lambda: "GET" in " ".join(r for r in served.requests if "resolve" in r), workers.log)
    workers.kill("compute")  # in the middle of a file
    workers.start()
    held.set()
    assert ended(row, workers).state == State.DONE, row.error
    lm = LanguageModel.objects.get()
    assert row.made_lm == lm and row.attempts >= 2
    held.clear()
    text = ask("dataset", "org/text", lm=lm, options={"ctx_len": 16})
    until(lambda: any("train-0" in r and r.startswith("GET") for r in served.requests), workers.log)
    assert additions.cancel(text)
    held.set()
    other = ask("dataset", "org/text", lm=lm, options={"ctx_len": 32})
    assert ended(other, workers).state == State.DONE, other.error
    assert came(text, State.CANCELLED) and Dataset.objects.get() == other.made_dataset
    assert additions.again(text) and ended(text, workers).state == State.DONE, text.error
    assert text.made_dataset is not None and text.made_dataset.n_documents == 100
