"""How a worker adds a language model or a dataset: to a row, or to a sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.models.functions import Now

from sae_backend import queue, taking
from sae_backend.additions import datasets, language_models
from sae_backend.models import Addition
from sae_backend.pulse import Abandoned
from sae_backend.taking import Step

State = Addition.State
ADD = Step("addition", State.QUEUED, State.RUNNING, State.FAILED, queue.send_addition)
WORK = {Addition.Kind.MODEL: language_models.add, Addition.Kind.DATASET: datasets.add}


class Held(taking.Held[Addition]):
    """An addition in this worker's hands, which says what is done and how far it is."""

    def taken(self) -> dict[str, Any]:
        return {"started_at": Now(), "done": 0, "total": None, "error": ""}

    def progress(self, done: int) -> dict[str, Any]:
        return {"done": done}

    def stage(self, words: str, total: int | None = None, unit: str = "") -> Callable[[int], None]:
        """Say what is done now; what comes back takes how much of it is, and raises Abandoned when it is over."""
        self.mine.update(stage=words, done=0, total=total, unit=unit)
        self.pulse.report(0)
        return self.pulse.report

    def finish(self, **made: Any) -> None:
        """Done, unless it was cancelled at the last moment."""
        if not self.mine.update(state=State.DONE, done_at=Now(), **made):
            raise Abandoned


def add(addition_id: int) -> None:
    """Add what waits, unless another worker is at it or nobody wants it any more."""
    rows = Addition.objects.select_related("lm", "owner")
    taking.carry_out(Held, rows, addition_id, ADD, lambda held: WORK[Addition.Kind(held.row.kind)](held))
