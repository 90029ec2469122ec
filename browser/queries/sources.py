"""Language models and data sets: the lists, the page of each, and what is being added."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from django.urls import reverse
from django.utils import timezone

from browser.errors import NotFound
from browser.permissions import Anyone, is_member, is_staff, may_add_sources, may_change
from browser.source_forms import DatasetForm, LmForm, OtherLmForm
from sae_backend import additions
from sae_backend.models import Addition, Dataset, LanguageModel, Sae

LISTED = 30  # additions
JUST_NOW = timedelta(minutes=10)
State = Addition.State


@dataclass(frozen=True)
class Adding:
    """Something on its way in, as its owner and staff see it."""

    row: Addition
    source: str  # where it comes from, as far as whoever looks may know
    said: str = ""  # why a wish could not be granted
    template: ClassVar[str] = "browser/addition_detail.html"

    @property
    def changing(self) -> bool:
        return self.row.state in additions.OPEN

    @property
    def error(self) -> str:
        """Its sentence, which may name that place."""
        return self.row.error.replace(self.row.source, self.source) if self.row.source else self.row.error

    @property
    def share(self) -> float | None:
        """Percent of the stage at hand, where its end is known."""
        return min(100.0, 100 * self.row.done / self.row.total) if self.row.total else None

    @property
    def made_url(self) -> str:
        if self.row.made_lm_id:
            return reverse("lm_detail", args=[self.row.made_lm_id])
        return reverse("dataset_detail", args=[self.row.made_dataset_id]) if self.row.made_dataset_id else ""

    @property
    def list_url(self) -> str:
        return reverse("lm_list" if self.row.kind == Addition.Kind.MODEL else "dataset_list")

    def as_json(self) -> dict[str, Any]:
        row = self.row
        fields = ("id", "kind", "origin", "name", "revision", "state", "stage", "unit", "done", "total")
        options = {key: value for key, value in row.options.items() if key in additions.OPTIONS}
        return {
            **{field: getattr(row, field) for field in fields}, "source": self.source,
            "model": row.lm.name if row.lm else None, "options": options,
            "error": self.error or None, "url": reverse("addition", args=[row.pk]), "made": self.made_url or None,
        }  # fmt: skip


@dataclass(frozen=True)
class Additions:
    """What is under way of one kind, has failed, or was done just now."""

    rows: list[Adding]

    @property
    def changing(self) -> bool:
        return bool(self.under_way)

    @property
    def under_way(self) -> list[Adding]:
        return [row for row in self.rows if row.changing]

    @property
    def over(self) -> list[Adding]:
        """Done just now; failed and cancelled ones until somebody takes them from the list."""
        return [row for row in self.rows if not row.changing]


@dataclass(frozen=True)
class LmRow:
    """A language model in the list."""

    lm: LanguageModel
    saes: int
    datasets: int

    def as_json(self) -> dict[str, Any]:
        fields = ("id", "name", "architecture", "d_model", "n_layers", "n_ctx", "d_vocab", "sha256")
        counts = {"saes": self.saes, "datasets": self.datasets, "url": reverse("lm_detail", args=[self.lm.pk])}
        return {**{field: getattr(self.lm, field) for field in fields}, **counts}


@dataclass(frozen=True)
class DatasetRow:
    """A data set in the list."""

    dataset: Dataset
    saes: int
    runs: int

    def as_json(self) -> dict[str, Any]:
        row = self.dataset
        fields = ("id", "name", "ctx_len", "n_contexts", "n_tokens", "n_documents", "sha256")
        counts = {"saes": self.saes, "runs": self.runs, "url": reverse("dataset_detail", args=[row.pk])}
        return {**{field: getattr(row, field) for field in fields}, "model": row.lm.name, **counts}


@dataclass(frozen=True)
class LmList:
    """All language models, and the form that adds one."""

    rows: list[LmRow]
    adding: Additions
    form: LmForm | None
    error: str = ""
    template: ClassVar[str] = "browser/lm_list.html"

    def as_json(self) -> dict[str, Any]:
        return {"models": [r.as_json() for r in self.rows], "additions": [a.as_json() for a in self.adding.rows]}


@dataclass(frozen=True)
class DatasetList:
    """All data sets, and the form that adds one."""

    rows: list[DatasetRow]
    adding: Additions
    form: DatasetForm | None
    error: str = ""
    template: ClassVar[str] = "browser/dataset_list.html"

    def as_json(self) -> dict[str, Any]:
        return {"datasets": [r.as_json() for r in self.rows], "additions": [a.as_json() for a in self.adding.rows]}


@dataclass(frozen=True)
class LmPage:
    """One language model; its folder is for staff to see."""

    row: LmRow
    saes: list[Sae]
    datasets: list[Dataset]
    used: list[str]
    may_change: bool
    source: str
    error: str = ""
    template: ClassVar[str] = "browser/lm_detail.html"


@dataclass(frozen=True)
class DatasetPage:
    """One data set, and the form that reads its text for another language model."""

    row: DatasetRow
    saes: list[Sae]
    used: list[str]
    may_change: bool
    source: str
    options: dict[str, Any]
    other: OtherLmForm | None
    error: str = ""
    template: ClassVar[str] = "browser/dataset_detail.html"


# ---- lists -------------------------------------------------------------------------------------------


def lm_list(user: Anyone, form: LmForm | None = None, error: str = "") -> LmList:
    form = form or LmForm(folders=is_staff(user)) if may_add_sources(user) else None
    return LmList(_lm_rows(), adding(user, Addition.Kind.MODEL), form, error)


def dataset_list(user: Anyone, form: DatasetForm | None = None, error: str = "") -> DatasetList:
    form = form or DatasetForm(folders=is_staff(user)) if may_add_sources(user) else None
    return DatasetList(_dataset_rows(), adding(user, Addition.Kind.DATASET), form, error)


def _lm_rows(**only: Any) -> list[LmRow]:
    found = LanguageModel.objects.filter(**only).defer("vocabulary").order_by("name")
    counted = found.annotate(n_saes=Count("saes", distinct=True), n_datasets=Count("datasets", distinct=True))
    return [LmRow(lm, lm.n_saes, lm.n_datasets) for lm in counted]


def _dataset_rows(**only: Any) -> list[DatasetRow]:
    found = Dataset.objects.filter(ready=True, **only).select_related("lm").defer("lm__vocabulary")
    counted = found.annotate(n_runs=Count("runs", distinct=True), n_saes=Count("runs__sae", distinct=True))
    return [DatasetRow(d, d.n_saes, d.n_runs) for d in counted.order_by("lm__name", "name", "ctx_len")]


def adding(user: Anyone, kind: str) -> Additions:
    """This user's additions that are not over for long; everybody's for staff."""
    lately = Q(done_at__gte=timezone.now() - JUST_NOW)
    rows = _visible(user).filter(~Q(state=State.DONE) | lately, kind=kind).order_by("-pk")
    return Additions([Adding(row, _source(user, row.source)) for row in rows[:LISTED]])


def _visible(user: Anyone) -> QuerySet[Addition]:
    rows = Addition.objects.select_related("lm", "owner").defer("lm__vocabulary")
    if is_staff(user):
        return rows
    return rows.filter(owner=user.pk) if user.is_authenticated else rows.none()


def addition(user: Anyone, pk: int) -> Adding:
    """One addition; another's is not there."""
    row = _visible(user).filter(pk=pk).first()
    if row is None:
        raise NotFound(f"There is no addition {pk}", "It is over and was taken from the list, or is another account's.")
    return Adding(row, _source(user, row.source))


# ---- one of them -------------------------------------------------------------------------------------


def lm(user: Anyone, pk: int, error: str = "") -> LmPage:
    row = next(iter(_lm_rows(pk=pk)), None)
    if row is None:
        raise NotFound(f"There is no language model {pk}", "The list of language models has those that there are.")
    saes = Sae.objects.filter(lm=row.lm).order_by("hook_name", "name")
    datasets = list(Dataset.objects.filter(lm=row.lm, ready=True).order_by("name"))
    used, may = additions.used_by(row.lm), may_change(user, row.lm)
    return LmPage(row, list(saes), datasets, used, may, _source(user, row.lm.source), error)


def dataset(user: Anyone, pk: int, error: str = "") -> DatasetPage:
    row = next(iter(_dataset_rows(pk=pk)), None)
    if row is None:
        raise NotFound(f"There is no data set {pk}", "The list of data sets has those that there are.")
    options = {key: value for key, value in row.dataset.recipe.get("options", {}).items() if key in additions.OPTIONS}
    saes = list(additions.saes_on(row.dataset).order_by("name"))
    used, may = additions.used_by(row.dataset), may_change(user, row.dataset)
    other = _other_form(row.dataset) if is_member(user) and row.dataset.recipe else None
    return DatasetPage(row, saes, used, may, _source(user, row.dataset.source), options, other, error)


def _other_form(dataset: Dataset) -> OtherLmForm | None:
    """Of the language models that have no data set of this name."""
    form, there = OtherLmForm(), Dataset.objects.filter(lm=OuterRef("pk"), name=dataset.name)
    form.fields["lm"].queryset = form.fields["lm"].queryset.filter(~Exists(there))  # type: ignore[attr-defined]
    return form if form.fields["lm"].queryset.exists() else None  # type: ignore[attr-defined]


def _source(user: Anyone, source: str) -> str:
    return "a folder of the server" if source.startswith("/") and not is_staff(user) else source


