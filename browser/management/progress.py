"""Progress of imports and their runs in a terminal: a line for each, in place where the output is one."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError
from django.utils import timezone

from browser.queries import runs
from browser.queries.progress import Progress
from browser.templatetags.latent_tags import THIN, duration, nth, remaining, speed
from sae_backend.models import UNFINISHED, Run, SaeImport

EVERY = 1.0  # seconds between looks
QUIET = 30.0  # seconds between lines of one run in one stage, where they are not written in place
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def follow(import_ids: Sequence[int], out: Any) -> None:
    """Show imports and their runs until all are over; CommandError names what failed, once."""
    try:
        failed = watch(import_ids, out)
    except KeyboardInterrupt:
        out.write(f"\n{_going_on(import_ids)}")
        sys.exit(INTERRUPTED)
    if failed:
        raise CommandError("\n".join(failed))


def watch(import_ids: Sequence[int], out: Any, every: float = EVERY) -> list[str]:
    """The same; the sentences of what failed."""
    show = InPlace(out) if out.isatty() else Lines(out)
    while True:
        rows = list(SaeImport.objects.select_related("run__sae").filter(pk__in=import_ids).order_by("pk"))
        progress = {p.run.pk: p for p in runs.unfinished()} if any(_waits(row) for row in rows) else {}
        show([Line(row, progress.get(row.run_id or 0)) for row in rows])
        if all(_over(row) for row in rows):
            return [sentence for row in rows if (sentence := _failure(row))]
        time.sleep(every)


class Line:
    """An import or its run: what stage it is in, and all there is to say of it."""

    def __init__(self, row: SaeImport, progress: Progress | None) -> None:
        self.pk, self.name = row.pk, row.name
        self.stage, figures = _said(row, progress)
        self.text = "  ".join([self.stage, *figures]).replace(THIN, " ")


def _said(row: SaeImport, progress: Progress | None) -> tuple[str, list[str]]:
    """The stage in a few words, and its figures."""
    if row.state != SaeImport.State.DONE:
        words = {"queued": "waits for a worker", "running": "the checkpoint is read"}
        return words.get(row.state, str(row.state)), _long_wait(row)
    if row.run is None:
        return "imported", []
    if row.run.state in (Run.State.LIVE, Run.State.RETIRED):
        return f"ready at /s/{row.run.sae.public_id}", []
    if progress is None:
        return str(row.run.state), []
    return _stage(progress)


def _long_wait(row: SaeImport) -> list[str]:
    """For how long nobody has begun with an import, where a worker that runs would have."""
    waited = (timezone.now() - row.created_at).total_seconds()
    if row.state != SaeImport.State.QUEUED or waited < settings.STALLED_SECONDS:
        return []
    return [f"for {duration(waited)} now; if none runs, start one: make worker"]


def _stage(progress: Progress) -> tuple[str, list[str]]:
    stage = progress.current
    if progress.stalled:
        return "stalled: no worker has touched it for", [duration(progress.silent), "/jobs says what to do"]
    if stage is None or not stage.unit:
        place = nth(progress.queue.place) if progress.queue.place > 1 else "next"
        return f"in the queue, {place}", _about(progress.queue.seconds, "begins in about {}")
    figures = [f"{stage.share:3.0f} %"] if stage.total else []
    figures += [speed(stage.rate, stage.unit)] if stage.rate else []
    left, later = progress.left, "about {} left"
    return stage.name.lower(), figures + (_about(left, later) or _about(stage.left, f"{later} in this stage"))


def _about(seconds: float | None, words: str) -> list[str]:
    return [] if seconds is None else [words.format(remaining(seconds))]


class Lines:
    """Plain lines for a file or a pipe: one for each new stage, and now and then one in between."""

    def __init__(self, out: Any) -> None:
        self.out = out
        self.said: dict[int, tuple[str, str, float]] = {}

    def __call__(self, lines: Sequence[Line]) -> None:
        for line in lines:
            stage, text, at = self.said.get(line.pk, ("", "", 0.0))
            quiet = time.monotonic() - at < QUIET
            if line.stage != stage or (line.text != text and not quiet):
                self.said[line.pk] = (line.stage, line.text, time.monotonic())
                self.out.write(f"{line.name:32} {line.text}")
        self.out.flush()


class InPlace:
    """The same lines again and again in the same place of a terminal."""

    def __init__(self, out: Any) -> None:
        self.out, self.height = out, 0

    def __call__(self, lines: Sequence[Line]) -> None:
        width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
        block = "".join(f"\r\033[K{f'{line.name:32} {line.text}'[:width]}\n" for line in lines)
        self.out.write(f"\033[{self.height}A{block}" if self.height else block, ending="")
        self.out.flush()
        self.height = len(lines)


def _waits(row: SaeImport) -> bool:
    return row.run is not None and not _over(row)


def _over(row: SaeImport) -> bool:
    if row.state in (SaeImport.State.QUEUED, SaeImport.State.RUNNING):
        return False
    return row.run is None or row.run.state not in UNFINISHED


def _failure(row: SaeImport) -> str:
    """Why it did not come to be published; "" where it did."""
    name = f"{row.name}: "
    if row.state == SaeImport.State.FAILED:
        return name + row.error
    if row.run is not None and row.run.state == Run.State.CANCELLED:
        return f"{name}cancelled; resume_run {row.run.pk} goes on with it"
    if row.run is not None and row.run.state == Run.State.FAILED:
        return f"{name}{row.run.error} (resume_run {row.run.pk} goes on with it)"
    return ""


def _going_on(import_ids: Sequence[int]) -> str:
    """What to say to whoever leaves before the end."""
    rows = SaeImport.objects.select_related("run").filter(pk__in=import_ids).order_by("pk")
    left = [row for row in rows if not _over(row)]
    cancel = " or ".join(f"cancel_run {row.run.pk}" for row in left if row.run) or "cancel_run, once it has begun,"
    return f"The workers go on with {', '.join(row.name for row in left)}: /jobs shows it, and {cancel} stops it."
