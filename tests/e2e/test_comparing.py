"""Two SAEs compared by a real worker that is killed in the middle, and by the next one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae_backend import comparisons
from sae_backend.core.matching import MATCHED, NOVEL, classify
from sae_backend.models import Comparison, Dataset, LanguageModel
from tests.backend import messages, planted
from tests.e2e.crew import Workers, unread, until

pytestmark = pytest.mark.django_db(transaction=True)
State = Comparison.State


def test_a_killed_comparison_is_taken_up_by_the_next_worker(
    workers: Workers, lm: LanguageModel, dataset: Dataset, settings: object, tmp_path: Path
) -> None:
    settings.COMPUTE_DTYPE = "float32"  # type: ignore[attr-defined]
    small, large = planted.saes(lm, dataset, tmp_path / "saes")
    messages.forget()
    row = comparisons.ask(small, large)

    def came(*states: str) -> bool:
        row.refresh_from_db(fields=["state", "attempts", "error"])
        return row.state in states

    with unread(dataset):  # which it reads in the middle
        workers.start()
        until(lambda: came(State.RUNNING), workers.log)
        workers.kill("compute")
    attempts = row.attempts
    workers.start()
    until(lambda: came(State.DONE, State.FAILED), lambda: f"{row.state} {row.error}\n{workers.log()}")
    assert row.state == State.DONE and row.attempts > attempts, row.error
    found = comparisons.sides(row.pk)
    assert found is not None
    codes = classify(*found)
    assert (codes[0] == MATCHED).sum() == (codes[1] == MATCHED).sum() > 20
    assert (codes[1][planted.SHARED + 2 :][found[1].live[planted.SHARED + 2 :]] == NOVEL).all()
    assert np.isin(found[0].counterpart, np.flatnonzero(found[1].live)).all()
