"""The two things that a worker does with a checkpoint: its check, and its import."""

from __future__ import annotations

from collections.abc import Callable

from sae_backend import queue, taking
from sae_backend.models import SaeImport
from sae_backend.taking import Step

State = SaeImport.State
Held = taking.Held[SaeImport]
CHECK = Step("import", State.CHECKING, State.CHECKING, State.WAITING, queue.send_check)
IMPORT = Step("import", State.QUEUED, State.RUNNING, State.FAILED, queue.send_import)


def carry_out(import_id: int, step: Step, work: Callable[[Held], None]) -> None:
    """Do a step that waits, unless another worker is at it."""
    rows = SaeImport.objects.select_related("lm", "dataset", "owner")
    taking.carry_out(Held, rows, import_id, step, work)
