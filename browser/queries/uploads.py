"""The page of an import: its files, what a check found, and the choices before it is computed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from browser import remedies
from browser.errors import Link
from browser.queries import estimate
from browser.templatetags.latent_tags import duration, fixed, thousands
from browser.upload_forms import UploadForm
from sae_backend import intake
from sae_backend.core.detected import ARCHITECTURES
from sae_backend.intake import limits
from sae_backend.models import Dataset, LanguageModel, SaeImport, UploadFile

State = SaeImport.State
OPEN = (State.RECEIVING, State.CHECKING, State.WAITING, State.QUEUED, State.RUNNING)
WORKING = (State.CHECKING, State.QUEUED, State.RUNNING)  # a worker has it, or will
TAKES_FILES = (State.RECEIVING, State.WAITING, State.FAILED)
WORDS = {"ok": "Passed", "warn": "Warning", "fail": "Failed"}
MARKS = {"ok": ("ok", "done"), "warn": ("wa", "warning"), "fail": ("er", "cross")}


@dataclass(frozen=True)
class CheckLine:
    """One line of the report: glyph, word and sentence, and a figure at its end."""

    name: str
    state: str
    text: str
    figure: str = ""
    url: str = ""

    @property
    def word(self) -> str:
        return WORDS[self.state]

    @property
    def css(self) -> str:
        return MARKS[self.state][0]

    @property
    def glyph(self) -> str:
        return MARKS[self.state][1]


@dataclass(frozen=True)
class FileLine:
    """A file of the import, and how much of it has arrived."""

    file: UploadFile

    @property
    def percent(self) -> float:
        return 100 * self.file.received / self.file.size if self.file.size else 100.0


@dataclass(frozen=True)
class UploadPage:
    """The page, and with _import_live.html the part of it that a worker changes."""

    row: SaeImport | None = None
    files: list[FileLine] = field(default_factory=list)
    form: UploadForm | None = None
    stages: dict[str, float] = field(default_factory=dict)  # seconds that each takes, where they can be told
    mine: list[SaeImport] = field(default_factory=list)
    error: str = ""  # why what was asked for could not be done
    may_upload: bool = False
    may_change: bool = False
    has_lm: bool = True
    template: ClassVar[str] = "browser/import_detail.html"

    @property
    def state(self) -> str:
        return self.row.state if self.row else ""

    @property
    def working(self) -> bool:
        return self.state in WORKING

    @property
    def takes_files(self) -> bool:
        return self.row is None or (self.state in TAKES_FILES and not self.row.from_hub)

    @property
    def can_check(self) -> bool:
        return self.state in TAKES_FILES and bool(self.row and (self.row.from_hub or self.whole))

    @property
    def whole(self) -> bool:
        """Every file has arrived."""
        return bool(self.files) and all(line.file.complete for line in self.files)

    @property
    def ready(self) -> bool:
        return bool(self.row and self.state == State.WAITING and self.row.report.get("ready"))

    @property
    def detected(self) -> dict[str, Any]:
        return (self.row.report.get("detected") or {}) if self.row else {}

    @property
    def estimate(self) -> float:
        """Seconds of the whole run; 0 where they cannot be told."""
        return sum(self.stages.values())

    @property
    def identity(self) -> str:
        """What the address of its page will end in."""
        return self.row.report.get("identity", "") if self.row else ""

    @property
    def here(self) -> dict[str, Any] | None:
        return self.row.report.get("here") if self.row else None

    @property
    def checks(self) -> list[CheckLine]:
        return _lines(self.row.report) if self.row else []

    @property
    def counts(self) -> dict[str, int]:
        return {state: sum(line.state == state for line in self.checks) for state in WORDS}

    @property
    def as_checked(self) -> bool:
        """Nothing was chosen since that the check has not seen."""
        report = self.row.report if self.row else {}
        return bool(self.row) and (report.get("lm"), report.get("options")) == (self.row.lm_id, self.row.options)  # type: ignore[union-attr]

    @property
    def checked(self) -> str:
        """What the check has seen, by the names of the form's fields, as JSON; a script compares it with the form."""
        report = self.row.report if self.row else {}
        return json.dumps({"lm": report.get("lm"), **(report.get("options") or {})})

    @property
    def remedies(self) -> list[Link]:
        return remedies.of_import(self.row) if self.row and self.row.error and self.may_change else []

    @property
    def limit(self) -> str:
        """Of the bytes of one import."""
        return limits.in_words(settings.UPLOAD_MAX_BYTES)

    @property
    def doubtful(self) -> bool:
        """The trial says that it is probably read wrongly."""
        return bool(self.row) and (self.row.report.get("trial") or {}).get("state") == "fail"  # type: ignore[union-attr]

    @property
    def waits_long(self) -> bool:
        """No worker has begun with it in the time in which one that runs would have."""
        if not self.row or not self.working or self.row.tries:
            return False
        since = self.row.heartbeat_at or self.row.created_at
        return timezone.now() - since > timedelta(seconds=settings.STALLED_SECONDS)

    @property
    def expires(self) -> datetime | None:
        return intake.expires(self.row) if self.row else None


def _lines(report: dict[str, Any]) -> list[CheckLine]:
    """Checks, trial, notes and whether it is here already, in the order in which they are looked at."""
    checks = [_check(each) for each in report.get("checks", [])]
    open_ = [
        CheckLine("Left open", "warn" if not each["required"] else "fail", each["text"])
        for each in report.get("questions", [])
        if each["field"] not in (report.get("options") or {})
    ]
    notes = [CheckLine("Note", "warn", note) for note in (report.get("detected") or {}).get("notes", [])]
    read = _architecture(report.get("detected") or {})
    return [*open_, *checks[:1], *read, *checks[1:], *notes, *_trial(report.get("trial")), *_here(report)]


def _check(each: dict[str, Any]) -> CheckLine:
    return CheckLine(each["name"].capitalize(), each["state"], each["text"], each.get("figure", ""))


def _architecture(detected: dict[str, Any]) -> list[CheckLine]:
    """What the files were taken for; whether that is right, the trial says."""
    if not detected:
        return []
    k = f"k {detected['k']}" if detected.get("k") else ""
    return [CheckLine("Activation", "ok", ARCHITECTURES.get(detected["architecture"], detected["architecture"]), k)]


def _trial(trial: dict[str, Any] | None) -> list[CheckLine]:
    if not trial:
        return []
    figures = f"L0 {fixed(trial['l0'], 1)}, FVU {fixed(trial['fvu'], 3)}"
    text = f"on {thousands(trial['tokens'])} tokens: {figures}. {_verdict(trial['text'])}"
    return [CheckLine("Trial run", trial["state"], text, duration(trial.get("seconds")) if "seconds" in trial else "")]


def _verdict(text: str) -> str:
    """What the trial says, without the figures that it may begin with and that stand before it here."""
    said = text.partition(": ")[2] if text.startswith("FVU") else text
    return said[:1].upper() + said[1:]


def _here(report: dict[str, Any]) -> list[CheckLine]:
    if "here" not in report:
        return []
    here = report["here"]
    if here is None:
        return [CheckLine("Already here?", "ok", "no SAE with these weights")]
    text = f"these weights are here as {here['name']}, of {here['lm']}: computing adds a run to it"
    if here.get("aside"):
        text += ", at an address of its own: somebody else brought it in, and its pages stay as they are"
    url = reverse("sae_detail", args=[here["public_id"]])
    return [CheckLine("Already here?", "warn", text, here["public_id"], url)]


def page(row: SaeImport | None, user: Any, may_upload: bool, may_change: bool, error: str = "") -> UploadPage:
    """The page of an import, or of one to be begun."""
    lms = list(LanguageModel.objects.defer("vocabulary").order_by("name"))
    shown = UploadPage(row, error=error, may_upload=may_upload, may_change=may_change, has_lm=bool(lms))
    if row is None:
        return replace(shown, mine=_mine(user) if may_upload else [])
    datasets = Dataset.objects.filter(ready=True).select_related("lm").defer("lm__vocabulary").order_by("name", "pk")
    form = UploadForm(row, lms, datasets)
    files = [FileLine(file) for file in sorted(row.files.all(), key=lambda file: file.name)]
    return replace(shown, files=files, form=form, stages=estimate.stages(row))


def _mine(user: Any) -> list[SaeImport]:
    """What this user has begun and not finished; of nobody's, what came without an account."""
    owned = SaeImport.objects.filter(owner=user if user.is_authenticated else None, state__in=[*OPEN, State.FAILED])
    return list(owned.order_by("-pk")[:20])
