"""How a worker takes up the check or the import of a checkpoint: alone, with signs of life, and never for ever.

A worker that is killed or hangs loses it to the next one (queue.sweep); one that wakes up late finds that its attempt
is not the latest, and what it has done is not taken.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from django.conf import settings
from django.db.models import QuerySet
from django.db.models.functions import Now

from sae_backend import faults, locks, queue
from sae_backend.core.run import RunError
from sae_backend.helpful import HELPFUL, sentence
from sae_backend.models import SaeImport
from sae_backend.pulse import Abandoned, Pulse

State = SaeImport.State
MAX_ATTEMPTS = 5  # that no worker survived: what ends each of them would do so for ever
DEADLY = (
    "{} workers ended while they read this checkpoint: perhaps for want of memory. Give workers more, then check it "
    "again"
)
TOO_LONG = (
    "the check took longer than {:,.0f} s (CHECK_SECONDS) and was given up: try it with a smaller language model or "
    "dataset, or ask whoever runs this site"
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """One of the two things that a worker does with an import."""

    before: tuple[str, ...]  # states in which it is taken up
    during: str
    failed: str  # with a sentence in `error`
    seconds: float  # that it may take; inf is for ever


@dataclass
class Held:
    """An import in this worker's hands, as long as its attempt is the latest."""

    row: SaeImport
    step: Step
    pulse: Pulse

    @property
    def mine(self) -> QuerySet[SaeImport]:
        """The row, unless it was cancelled or another worker has taken it up."""
        return latest(self.row, self.step)


def latest(row: SaeImport, step: Step) -> QuerySet[SaeImport]:
    return SaeImport.objects.filter(pk=row.pk, attempts=row.attempts, state=step.during)


def carry_out(import_id: int, step: Step, work: Callable[[Held], None]) -> None:
    """Do a step that waits, unless another worker is at it."""
    with locks.alone("import", import_id) as mine:
        row = SaeImport.objects.select_related("lm", "dataset", "owner").get(pk=import_id)
        if mine and row.state in step.before and _taken_up(row, step):
            _explained(row, step, work)


def _taken_up(row: SaeImport, step: Step) -> bool:
    as_read = SaeImport.objects.filter(pk=row.pk, attempts=row.attempts, state=row.state)
    row.attempts, row.state = row.attempts + 1, step.during
    return bool(as_read.update(attempts=row.attempts, state=row.state, heartbeat_at=Now()))


def _explained(row: SaeImport, step: Step, work: Callable[[Held], None]) -> None:
    """Leave a sentence where it cannot be done; what passes is tried again."""
    try:
        _refuse_deadly(row)
        with Pulse(_beat(row, step)) as pulse:
            work(Held(row, step, pulse))
    except Abandoned:
        _give_back(row, step)
    except Exception as error:
        if isinstance(error, faults.DATABASE):
            faults.leave_broken_connection()
        if faults.passes(error):
            with suppress(*faults.DATABASE):
                latest(row, step).update(attempts=row.attempts - 1)
            raise
        fail(row, step, sentence(error))
        if not isinstance(error, HELPFUL):
            raise


def _refuse_deadly(row: SaeImport) -> None:
    if row.attempts > MAX_ATTEMPTS:
        raise RunError(DEADLY.format(row.attempts - 1))


def _beat(row: SaeImport, step: Step) -> Callable[[int], bool]:
    begun = time.monotonic()

    def beat(_: int) -> bool:
        if time.monotonic() - begun > step.seconds:
            fail(row, step, TOO_LONG.format(step.seconds))
            return False
        return bool(latest(row, step).update(heartbeat_at=Now()))

    return beat


def fail(row: SaeImport, step: Step, message: str) -> None:
    """Leave an import to its owner with a sentence; its files stay."""
    done = {"done_at": Now()} if step.failed == State.FAILED else {}
    latest(row, step).update(state=step.failed, error=message, **done)


def _give_back(row: SaeImport, step: Step) -> None:
    """A worker that was told to end counts against nobody; one whose import is gone has nothing to give."""
    if latest(row, step).update(attempts=row.attempts - 1):
        queue.send_again(row)
    logger.info("left import %s", row.pk)


def check_step() -> Step:
    return Step((State.CHECKING,), State.CHECKING, State.WAITING, settings.CHECK_SECONDS)


def import_step() -> Step:
    return Step((State.QUEUED, State.RUNNING), State.RUNNING, State.FAILED, float("inf"))
