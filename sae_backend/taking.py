"""How a worker takes up an import, an addition or a comparison: alone, with signs of life, and never for ever.

A worker that is killed or hangs loses it to the next one (queue.sweep); one that wakes up late finds that its attempt
is not the latest, and what it has done is not taken. So attempts are counted on for as long as the row lives, and who
asks again counts too; `tries` are those since then that no worker has survived, as far as is known.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from django.db.models import F, QuerySet
from django.db.models.functions import Now

from sae_backend import faults, locks
from sae_backend.core.run import RunError
from sae_backend.helpful import HELPFUL, sentence
from sae_backend.models import Addition, Comparison, SaeImport
from sae_backend.pulse import Abandoned, Pulse

MAX_TRIES = 5  # what ends each worker would do so for ever
DEADLY = "{} workers ended over this, perhaps for want of memory: give workers more, then try it again"
Row = TypeVar("Row", SaeImport, Addition, Comparison)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """Something that a worker does with a row, and the states that say so."""

    lock: str  # that who does it holds
    waiting: str
    during: str
    failed: str  # with a sentence in `error`
    send: Callable[[int], object]  # queues it


@dataclass
class Held(Generic[Row]):
    """A row in this worker's hands, as long as its attempt is the latest and nobody has stopped it."""

    row: Row
    step: Step
    pulse: Pulse = field(init=False)
    _until: tuple[float, str] = (math.inf, "")  # of time.monotonic, and what is said then

    def __post_init__(self) -> None:
        self.pulse = Pulse(self._beat)

    @property
    def mine(self) -> QuerySet[Any]:
        """The row, unless it was stopped or another worker has taken it up."""
        rows: QuerySet[Any] = type(self.row).objects.all()
        return rows.filter(pk=self.row.pk, attempts=self.row.attempts, state=self.step.during)

    def allow(self, seconds: float, too_long: str) -> None:
        """Give what is still to be done so long; then it is given up with a sentence."""
        self._until = time.monotonic() + seconds, too_long

    def take(self) -> bool:
        """Make this the latest attempt; False where another was first."""
        as_read: QuerySet[Any] = type(self.row).objects.filter(attempts=self.row.attempts, state=self.row.state)
        self.row.attempts, self.row.tries = self.row.attempts + 1, self.row.tries + 1
        self.row.state = self.step.during
        counted = {"attempts": self.row.attempts, "tries": self.row.tries}
        values = {**counted, "state": self.row.state, "heartbeat_at": Now(), **self.taken()}
        return bool(as_read.filter(pk=self.row.pk).update(**values))

    def taken(self) -> dict[str, Any]:
        """What else is set where it is taken up."""
        return {}

    def progress(self, done: int) -> dict[str, Any]:
        """What else is noted with a sign of life."""
        return {}

    def fail(self, message: str) -> None:
        """Leave it to whoever asked, with a sentence."""
        over = {"done_at": Now()} if self.step.failed == "failed" else {}
        self.mine.update(state=self.step.failed, error=message, **over)

    def give_back(self) -> None:
        """A worker that was told to end counts against nobody; one whose row is gone has nothing to give."""
        if self.mine.update(state=self.step.waiting, tries=F("tries") - 1):
            self.step.send(self.row.pk)
        logger.info("left %s %s", self.step.lock, self.row.pk)

    def _beat(self, done: int) -> bool:
        until, too_long = self._until
        if time.monotonic() > until:
            self.fail(too_long)
            return False
        return bool(self.mine.update(heartbeat_at=Now(), **self.progress(done)))


class Staged(Held[Row]):
    """One that says what is done now and how far that is."""

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
        if not self.mine.update(state="done", done_at=Now(), **made):
            raise Abandoned


H = TypeVar("H", bound=Held[Any])


def carry_out(
    kind: Callable[[Any, Step], H], rows: QuerySet[Any], pk: int, step: Step, work: Callable[[H], None]
) -> None:
    """Do a step that waits, unless another worker is at it or nobody wants it any more."""
    with locks.alone(step.lock, pk) as mine:
        row = rows.filter(pk=pk).first()
        if not mine or row is None or row.state not in (step.waiting, step.during):
            return
        held = kind(row, step)
        if held.take():
            _explained(held, work)
    if rows.filter(pk=pk, state=step.waiting).exclude(attempts=row.attempts).exists():
        step.send(pk)  # asked for again meanwhile: whoever took that message found us at it


def _explained(held: H, work: Callable[[H], None]) -> None:
    """Leave a sentence where it cannot be done; what passes is tried again."""
    try:
        if held.row.tries > MAX_TRIES:
            raise RunError(DEADLY.format(held.row.tries - 1))
        with held.pulse:
            work(held)
    except Abandoned:
        held.give_back()
    except Exception as error:
        if isinstance(error, faults.DATABASE):
            faults.leave_broken_connection()
        if faults.passes(error):
            with suppress(*faults.DATABASE):
                held.mine.update(tries=F("tries") - 1)
            raise
        held.fail(sentence(error))
        if not isinstance(error, HELPFUL):
            raise
