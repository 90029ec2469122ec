"""How a worker adds a language model or a dataset: to a row, or to a sentence."""

from __future__ import annotations

from sae_backend import queue, taking
from sae_backend.additions import datasets, language_models
from sae_backend.models import Addition
from sae_backend.taking import Step

State = Addition.State
ADD = Step("addition", State.QUEUED, State.RUNNING, State.FAILED, queue.send_addition)
WORK = {Addition.Kind.MODEL: language_models.add, Addition.Kind.DATASET: datasets.add}


Held = taking.Staged[Addition]


def add(addition_id: int) -> None:
    """Add what waits, unless another worker is at it or nobody wants it any more."""
    rows = Addition.objects.select_related("lm", "owner")
    taking.carry_out(Held, rows, addition_id, ADD, lambda held: WORK[Addition.Kind(held.row.kind)](held))
