"""The steps of an import, each by compare-and-set: opened, checked, started, cancelled, as the web process asks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from sae_backend import queue, storage
from sae_backend.core.detected import OPTIONS, Option, choices_of
from sae_backend.intake import from_hub, limits, receiving, training
from sae_backend.intake.errors import IntakeError, Malformed, Unavailable
from sae_backend.models import Dataset, LanguageModel, SaeImport

State = SaeImport.State
CHECKABLE = (State.RECEIVING, State.WAITING, State.FAILED)
CANCELLABLE = (*limits.OPEN, State.FAILED)
CHOICES = ("name", "options", "lm", "dataset", "max_tokens", "series", "step")
NUMBERS = {"whole": int, "number": float}
UNSET: Any = object()


def open_import(owner: Any, name: str = "", hub_id: str = "") -> SaeImport:
    """Begin an import that files are sent to, or one from the hub; IntakeError where there may be no more."""
    source = str(from_hub.parsed(hub_id)) if hub_id else ""
    with transaction.atomic():
        limits.one_by_one(owner)
        limits.check_opening(owner)
        return SaeImport.objects.create(
            owner=owner, name=_plain(name), source=source, from_hub=bool(hub_id), state=State.RECEIVING
        )


def change(
    row: SaeImport, *, name: str = UNSET, options: dict[str, Any] = UNSET, lm: LanguageModel | None = UNSET,
    dataset: Dataset | None = UNSET, max_tokens: int | None = UNSET, go_on: bool = UNSET,
    series: str = UNSET, step: int | None = UNSET,
) -> None:  # fmt: skip
    """Take a person's choices; what is not given stays."""
    given: dict[str, Any] = {
        "lm": lm, "dataset": dataset, "max_tokens": max_tokens, "go_on": go_on, "step": step,
        "name": name if name is UNSET else _plain(name), "series": series if series is UNSET else _plain(series),
        "options": options if options is UNSET else corrections(options),
    }  # fmt: skip
    if lm is not UNSET and dataset is UNSET and row.dataset is not None and row.dataset.lm_id != (lm and lm.pk):
        row.dataset = None  # of the language model before
    for field, value in given.items():
        if value is not UNSET:
            setattr(row, field, value)
    if row.lm is None and row.dataset is not None:
        row.lm = row.dataset.lm
    _refuse_unfit(row)


def save(row: SaeImport, **choices: Any) -> None:
    """Keep a person's choices before anything is done with them, so that no reload loses them."""
    change(row, **choices)
    values = {field: getattr(row, field) for field in CHOICES}
    if not SaeImport.objects.filter(pk=row.pk, state__in=CHECKABLE).update(**values, touched_at=timezone.now()):
        row.refresh_from_db()
        raise IntakeError(f"this import is {row.state}: what is chosen for it stays as it was")


def _plain(name: str) -> str:
    return " ".join(name.split())[:200]


def _refuse_unfit(row: SaeImport) -> None:
    if row.dataset is not None and (row.lm is None or row.dataset.lm_id != row.lm_id):
        belongs = row.dataset.lm.name
        raise Malformed(f"{row.dataset.name} is tokenized for {belongs}: choose {belongs}, or one of its datasets")
    if row.max_tokens is not None and row.max_tokens < 1:
        raise Malformed("give a number of tokens above 0, or none for all of the dataset")
    if row.step is not None and not 0 <= row.step <= training.MOST:
        raise Malformed(f"a step is at most {training.MOST}")


def corrections(options: dict[str, Any]) -> dict[str, Any]:
    """Corrections of the types that reading them takes, from JSON or a form's text; "" says nothing."""
    unknown = sorted(options.keys() - OPTIONS.keys())
    if unknown:
        raise Malformed(f"there is no option {unknown[0]!r}; there are: {', '.join(OPTIONS)}")
    return {name: _value(name, OPTIONS[name], value) for name, value in options.items() if value not in (None, "")}


def _value(name: str, option: Option, value: Any) -> Any:
    """One correction as its kind has it."""
    if option.kind == "yes_no":
        words = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
        raise Malformed(f"{name} is true or false, not {str(value)[:60]!r}")
    if option.kind in NUMBERS:
        with suppress(ValueError, OverflowError):
            if math.isfinite(number := NUMBERS[option.kind](str(value))):
                return number
        raise Malformed(f"{name} is a number, not {str(value)[:60]!r}")
    return _text(name, value)


def _text(name: str, value: Any) -> str:
    choices = [choice for choice, _ in choices_of(name)]
    if not isinstance(value, str) or len(value) > 400 or (choices and value not in choices):
        among = f" one of {', '.join(choices)}" if choices else " text"
        raise Malformed(f"{name} is{among}, not {str(value)[:60]!r}")
    return value


def check(row: SaeImport, **choices: Any) -> None:
    """Have a worker read what has arrived, with these choices, and report."""
    change(row, **choices)
    training.refuse_half(row)
    _refuse_incomplete(row)
    kept = {name: row.report[name] for name in ("hub",) if name in row.report}  # what was downloaded is here
    _move(row, CHECKABLE, State.CHECKING, report=kept, error="", done_at=None)
    transaction.on_commit(lambda: queue.send_check(row.pk))


def _refuse_incomplete(row: SaeImport) -> None:
    files = list(row.files.all())
    if not files and not row.source:
        raise IntakeError("there are no files in this import: add the SAE's weights and configuration")
    for file in files:
        if not file.kept:
            raise IntakeError("the files of this import were deleted: begin another one")
        if not file.complete:
            raise IntakeError(f"{file.name} has not arrived yet: send the rest of it, or delete it")


def start(row: SaeImport, **choices: Any) -> None:
    """Have a checked import carried out."""
    change(row, **choices)
    training.refuse_half(row)
    if row.lm is None:
        raise Malformed("choose the language model that this SAE was trained on")
    if not row.report.get("ready"):
        raise IntakeError("this import has not been checked with success yet: check it first")
    if row.report.get("lm") != row.lm_id or row.report.get("options") != row.options:
        raise IntakeError("the language model or a correction is not the one that was checked: check it again")
    _move(row, (State.WAITING,), State.QUEUED, error="")
    transaction.on_commit(lambda: queue.send_import(row.pk))


def cancel(row: SaeImport) -> bool:
    """Stop an import, and delete what has arrived; True unless it was over. A run that it began goes on."""
    before = row.state
    stopped = SaeImport.objects.filter(pk=row.pk, state__in=CANCELLABLE)
    if not stopped.update(state=State.CANCELLED, done_at=timezone.now()):
        return False
    row.refresh_from_db()
    row.files.update(kept=False)
    if before not in (State.CHECKING, State.RUNNING):  # those it is cleaned away from under nobody's hands
        receiving.remove_bytes(row)
    return True


def _move(row: SaeImport, before: Iterable[str], to: str, **fields: Any) -> None:
    """Save a person's choices with the step, unless another request was first."""
    row.state, row.touched_at, row.heartbeat_at = to, timezone.now(), timezone.now()
    for field, value in fields.items():
        setattr(row, field, value)
    saved = {*CHOICES, "go_on", "state", "touched_at", "heartbeat_at"}
    values = {field: getattr(row, field) for field in {*saved, *fields}}
    values |= {"tries": 0, "attempts": F("attempts") + 1}  # a worker that is still at what was asked before is too late
    if not SaeImport.objects.filter(pk=row.pk, state__in=list(before)).update(**values):
        row.refresh_from_db()
        raise IntakeError(f"this import is {row.state} and cannot be {_DONE[to]} now")


_DONE: dict[str, str] = {State.CHECKING: "checked", State.QUEUED: "started"}


def ask(
    name: str, source: Path, lm: LanguageModel, dataset: Dataset | None, options: dict[str, Any],
    series: str = "", step: int | None = None,
) -> SaeImport:  # fmt: skip
    """Queue the import of a file or folder of this host; where workers are on others, they are given its files."""
    with transaction.atomic():  # nobody begins before the files are there
        row = SaeImport.objects.create(
            name=name, source=str(source), lm=lm, dataset=dataset, options=options, series=series, step=step
        )
        shared = storage.current()
        if shared.shared:
            _share(shared, receiving.folder(row), source)
        transaction.on_commit(lambda: queue.send_import(row.pk))
    return row


def _share(shared: storage.Storage, folder: str, source: Path) -> None:
    from sae_backend.core.checkpoints import CheckpointError, list_files  # torch, which who asks may do without

    inside = f"{source.name}/" if source.is_dir() else ""
    try:
        shared.keep(folder, {f"{inside}{name}": path for name, path in list_files(source).items()})
    except CheckpointError as error:
        raise IntakeError(str(error)) from error
    except OSError as error:
        raise Unavailable(shared.explain(error)) from error


def expires(row: SaeImport) -> Any:
    """When the files of an import that nobody comes back for are deleted; None while it needs nobody."""
    if row.state not in CHECKABLE:
        return None
    return row.touched_at + timedelta(hours=settings.UPLOAD_EXPIRE_HOURS)
