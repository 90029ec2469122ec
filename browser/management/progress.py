"""Progress of imports and their runs in a terminal."""

from __future__ import annotations

import time
from typing import Any

from sae_backend.models import Run, SaeImport

CLEAR = "\r\033[K"  # the terminal's present line
_PUBLISHED = (Run.State.LIVE, Run.State.RETIRED, Run.State.DROPPED)  # the last two by a later run
_ENDED = (*_PUBLISHED, Run.State.FAILED, Run.State.CANCELLED)


def watch(import_ids: list[int], out: Any, seconds: float = 1.0) -> bool:
    """Print a line for each change until every import and its run has ended; True when all came to be published."""
    live_line = out.isatty() if hasattr(out, "isatty") else False
    said: dict[int, str] = {}
    while True:
        rows = list(SaeImport.objects.select_related("run__sae").filter(pk__in=import_ids).order_by("pk"))
        _say(rows, said, out, live_line)
        if all(_ended(row) for row in rows):
            return all(_good(row) for row in rows)
        time.sleep(seconds)


def _say(rows: list[SaeImport], said: dict[int, str], out: Any, live_line: bool) -> None:
    for row in rows:
        stage = _stage(row)
        if said.get(row.pk) != stage:
            said[row.pk] = stage
            out.write(f"{CLEAR if live_line else ''}{row.name:32} {stage}")
    if live_line:
        out.write(CLEAR + " · ".join(filter(None, map(_percent, rows))), ending="")
        out.flush()


def _stage(row: SaeImport) -> str:
    if row.state == SaeImport.State.FAILED:
        return f"failed: {row.error}"
    if row.run is None:
        return "imported" if row.state == SaeImport.State.DONE else "importing" if row.state == "running" else "queued"
    if row.run.state == Run.State.FAILED:
        return f"failed: {row.run.error}"
    if row.run.state in (Run.State.LIVE, Run.State.RETIRED):
        return f"ready at /s/{row.run.sae.public_id}"
    return str(Run.State(row.run.state).label).lower()


def _percent(row: SaeImport) -> str:
    run = row.run
    if run is None or run.state != Run.State.COMPUTING or not run.tokens_total:
        return ""
    return f"{row.name} {run.tokens_done / run.tokens_total:.0%} of {run.tokens_total:,} tokens"


def _ended(row: SaeImport) -> bool:
    if row.state in (SaeImport.State.QUEUED, SaeImport.State.RUNNING):
        return False
    return row.run is None or row.run.state in _ENDED


def _good(row: SaeImport) -> bool:
    return row.state == SaeImport.State.DONE and (row.run is None or row.run.state in _PUBLISHED)
