"""What the settings page of an SAE shows: its names, what is said of it, and its runs with what may be done to each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

from django.urls import reverse

from browser.errors import RunNotFound
from browser.sae_forms import AboutForm, DeleteForm, RenameForm, RerunForm, SeriesForm
from sae_backend.managing import DROPPABLE
from sae_backend.models import UNFINISHED, Run, Sae

READABLE = (Run.State.LIVE, Run.State.RETIRED)


@dataclass(frozen=True)
class RunRow:
    """A run, and what keeping or dropping it means."""

    run: Run

    @property
    def droppable(self) -> bool:
        return self.run.state in DROPPABLE and not self.run.pinned

    @property
    def address(self) -> str:
        return f"{self.run.sae.public_id}@r{self.run.number}"

    @property
    def readable(self) -> bool:
        return self.run.state in READABLE

    @property
    def if_dropped(self) -> str:
        """What dropping does, said plainly."""
        if self.run.state == Run.State.RETIRED:
            given_out = ", which have been given out," if self.run.shared_at else ""
            return f"Links to {self.address}{given_out} will say that it was dropped; this cannot be undone"
        return "It can then not be resumed any more"


@dataclass(frozen=True)
class SaeSettings:
    """The page; a form that was refused stands in place of a fresh one."""

    sae: Sae
    runs: list[RunRow]
    forms: dict[str, Any] = field(default_factory=dict)
    error: str = ""  # why a wish could not be granted
    template: ClassVar[str] = "browser/sae_settings.html"

    @property
    def rename(self) -> RenameForm:
        return self.forms.get("rename") or RenameForm(initial={"name": self.sae.name})

    @property
    def about(self) -> AboutForm:
        return self.forms.get("about") or AboutForm.of(self.sae.about)

    @property
    def series(self) -> SeriesForm:
        return self.forms.get("series") or SeriesForm(initial={"series": self.sae.series, "step": self.sae.step})

    @property
    def rerun(self) -> RerunForm:
        return self.forms.get("rerun") or RerunForm(self.sae)

    @property
    def delete(self) -> DeleteForm:
        return self.forms.get("delete") or DeleteForm(self.sae)

    @property
    def former(self) -> list[str]:
        return [former.slug for former in self.sae.former_slugs.order_by("pk")]

    @property
    def metadata(self) -> str:
        """What the checkpoint says of itself, as text; the template escapes it."""
        return json.dumps(self.sae.metadata, indent=2, ensure_ascii=False, sort_keys=True)

    @property
    def unfinished(self) -> bool:
        return any(row.run.state in UNFINISHED for row in self.runs)


@dataclass(frozen=True)
class SaeRefusal:
    """Says who may change an SAE."""

    sae: Sae
    template: ClassVar[str] = "browser/sae_refusal.html"
    sentence: ClassVar[str] = (
        "Renaming, computing again and deleting this SAE is for whoever brought it in, and for staff. "
        "Log in as one of them, or ask whoever runs this site."
    )


def page(sae: Sae, error: str = "", forms: dict[str, Any] | None = None) -> SaeSettings:
    runs = sae.runs.select_related("sae", "dataset").defer("summary").order_by("-number")
    return SaeSettings(sae, [RunRow(run) for run in runs], forms or {}, error)


def run_of(sae: Sae, number: int) -> Run:
    """One of its runs, whatever its state."""
    run = sae.runs.select_related("sae").filter(number=number).first()
    if run is None:
        raise RunNotFound(sae, number, list(sae.runs.order_by("number").values_list("number", flat=True)))
    return run


def card(sae: Sae) -> dict[str, Any]:
    """What of an SAE can be changed, for programs."""
    url = reverse("sae_detail", args=[sae.public_id])
    return {
        "id": sae.public_id, "name": sae.name, "slug": sae.slug, "about": sae.about,
        "series": sae.series, "step": sae.step, "url": url,
    }  # fmt: skip
