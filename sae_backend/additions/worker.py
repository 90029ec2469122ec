"""How a worker adds a language model or a dataset: alone, with signs of life, to a row or to a sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Now

from sae_backend import faults, locks, queue
from sae_backend.additions import datasets, language_models
from sae_backend.additions.errors import AdditionError
from sae_backend.additions.wishes import OPEN
from sae_backend.core import hub
from sae_backend.core.language_model import LanguageModelError
from sae_backend.core.text import TextError
from sae_backend.helpful import HELPFUL, sentence
from sae_backend.models import Addition
from sae_backend.pulse import Abandoned, Pulse

State = Addition.State
MAX_ATTEMPTS = 5  # that no worker survived: what ends each of them would do so for ever
SENTENCES = (*HELPFUL, TextError, hub.HubError, AdditionError)
WORK = {Addition.Kind.MODEL: language_models.add, Addition.Kind.DATASET: datasets.add}
logger = logging.getLogger(__name__)


@dataclass
class Held:
    """An addition in this worker's hands, as long as it is wanted and no other worker has taken it up."""

    row: Addition
    pulse: Pulse

    @property
    def mine(self) -> QuerySet[Addition]:
        return _mine(self.row)

    def stage(self, words: str, total: int | None = None, unit: str = "") -> Callable[[int], None]:
        """Say what is done now; what comes back takes how much of it is, and raises Abandoned when it is over."""
        self.mine.update(stage=words, done=0, total=total, unit=unit)
        self.pulse.report(0)
        return self.pulse.report

    def finish(self, **made: Any) -> None:
        """Done, unless it was cancelled at the last moment."""
        if not self.mine.update(state=State.DONE, done_at=Now(), **made):
            raise Abandoned


def _mine(row: Addition) -> QuerySet[Addition]:
    return Addition.objects.filter(pk=row.pk, attempts=row.attempts, state=State.RUNNING)


def add(addition_id: int) -> None:
    """Add what waits, unless another worker is at it or nobody wants it any more."""
    with locks.alone("addition", addition_id) as mine:
        row = Addition.objects.select_related("lm", "owner").filter(pk=addition_id).first()
        if mine and row is not None and row.state in OPEN and _taken_up(row):
            _explained(row)


def _taken_up(row: Addition) -> bool:
    as_read = Addition.objects.filter(pk=row.pk, attempts=row.attempts, state=row.state)
    row.attempts, row.state = row.attempts + 1, State.RUNNING
    now = {"heartbeat_at": Now(), "started_at": Now()}
    return bool(as_read.update(attempts=row.attempts, state=row.state, done=0, total=None, error="", **now))


def _explained(row: Addition) -> None:
    """Leave a sentence where it cannot be added; what passes is tried again."""
    try:
        if row.attempts > MAX_ATTEMPTS:
            raise LanguageModelError(f"{MAX_ATTEMPTS} workers ended over this, perhaps for want of memory: give more")
        with Pulse(lambda done: bool(_mine(row).update(heartbeat_at=Now(), done=done))) as pulse:
            WORK[Addition.Kind(row.kind)](Held(row, pulse))
    except Abandoned:
        if _mine(row).update(attempts=row.attempts - 1, state=State.QUEUED):  # this process was told to end
            queue.send_addition(row.pk)
    except Exception as error:
        if isinstance(error, faults.DATABASE):
            faults.leave_broken_connection()
        if faults.passes(error):
            with suppress(*faults.DATABASE):
                _mine(row).update(attempts=row.attempts - 1)
            raise
        words = str(error) if isinstance(error, SENTENCES) else sentence(error)
        _mine(row).update(state=State.FAILED, error=words, done_at=Now())
        if not isinstance(error, SENTENCES):
            raise
