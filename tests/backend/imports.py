"""Imports as people begin them, and the demo's checkpoints to send."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.db import connections

from sae_backend import intake
from sae_backend.intake import checking
from sae_backend.models import SaeImport
from tests.backend import demo, messages

SAE = demo.SAE
STEP = demo.DEMO / "saes" / "resid_post_2_topk32_4096_ckpts" / "step_00878.pt"
HOOK = "blocks.2.hook_resid_post"


def opened(*files: Path, owner: Any = None, name: str = "") -> SaeImport:
    """An import with files that have arrived; a folder's are all sent."""
    row = intake.open_import(owner, name)
    for path in files:
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            intake.receive(row, each.name, each)
    return fresh(row)


def fresh(row: SaeImport) -> SaeImport:
    return SaeImport.objects.select_related("lm", "dataset", "sae", "run", "owner").get(pk=row.pk)


def checked(row: SaeImport, **choices: Any) -> SaeImport:
    """After a check, by a worker in this process."""
    intake.check(row, **choices)
    messages.carry_out()
    return fresh(row)


def elsewhere(pk: int) -> None:
    """Check it with a connection of another worker."""
    checking.check_import(pk)
    connections.close_all()


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread; what never comes fails the test."""
    for _ in range(24_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")
