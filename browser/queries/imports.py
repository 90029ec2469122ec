"""Imports for programs: one by its key, those of a person, and all that is known of each as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.urls import reverse

from browser.errors import NotFound
from browser.queries import estimate
from sae_backend import intake
from sae_backend.core.detected import OPTIONS
from sae_backend.intake import training
from sae_backend.intake.errors import Malformed
from sae_backend.models import Dataset, LanguageModel, SaeImport, UploadFile

LISTED = 100


def find(key: UUID) -> SaeImport:
    row = _imports().filter(key=key).first()
    if row is None:
        raise NotFound("There is no such import", "See /jobs for what is on its way in, and /upload for yours.")
    return row


def find_file(row: SaeImport, key: UUID) -> UploadFile:
    file = row.files.filter(key=key).first()
    if file is None:
        raise NotFound("There is no such file", "It was deleted, or belongs to another import.")
    file.of = row
    return file


def mine(user: Any) -> list[SaeImport]:
    """A person's imports, the newest first."""
    return list(_imports().filter(owner=user if user.is_authenticated else None).order_by("-pk")[:LISTED])


def _imports() -> QuerySet[SaeImport]:
    rows = SaeImport.objects.select_related("lm", "dataset__lm", "owner", "sae", "run__sae")
    return rows.defer("lm__vocabulary", "dataset__lm__vocabulary").prefetch_related("files")


def choices(data: Mapping[str, Any]) -> dict[str, Any]:
    """What a form or JSON says of how an import is to be read and computed; what it does not name stays."""
    said: dict[str, Any] = {}
    if "name" in data:
        said["name"] = str(data["name"] or "")
    if "lm" in data:
        said["lm"] = _named(LanguageModel.objects.defer("vocabulary"), data["lm"], "language model")
    if "dataset" in data:
        said["dataset"] = _dataset(data["dataset"], said.get("lm"))
    if "max_tokens" in data:
        said["max_tokens"] = _whole("max_tokens is a number of tokens", data["max_tokens"])
    if "series" in data:
        said["series"] = str(data["series"] or "")
    if "step" in data:
        said["step"] = _whole("step is a whole number", data["step"])
    if "options" in data or data.keys() & OPTIONS.keys():
        said["options"] = _options(data)
    return said


def _options(data: Mapping[str, Any]) -> dict[str, Any]:
    given = data.get("options") or {}
    if not isinstance(given, Mapping):
        raise Malformed("options is an object of corrections by name")
    return {**given, **{name: data[name] for name in OPTIONS if name in data}}


def _dataset(value: Any, lm: LanguageModel | None) -> Dataset | None:
    rows = Dataset.objects.filter(ready=True).select_related("lm").defer("lm__vocabulary").order_by("pk")
    return _named(rows.filter(lm=lm) if lm is not None else rows, value, "dataset that is ready")


def _named(rows: QuerySet[Any], value: Any, what: str) -> Any:
    """By number or name; "" says nothing."""
    text = str(value or "").strip()
    if not text:
        return None
    number = rows.filter(pk=int(text)).first() if text.isdecimal() and len(text) < 10 else None
    row = number or rows.filter(name=text).first()
    if row is None:
        known = ", ".join(rows.values_list("name", flat=True)[:20]) or "none"
        raise Malformed(f"there is no {what} called {text[:80]!r} here; there are: {known}")
    return row


def _whole(means: str, value: Any) -> int | None:
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > 15:
        raise Malformed(f"{means}, not {str(value)[:60]!r}")
    return int(str(value))


def as_json(row: SaeImport) -> dict[str, Any]:
    """All there is to say of an import; addresses are paths of this site."""
    dataset = row.dataset
    return {
        "key": str(row.key),
        "url": reverse("import_detail", args=[row.key]),
        "json": reverse("import_json", args=[row.key]),
        "name": row.name,
        "state": row.state,
        "error": row.public_error or None,
        "hub": row.source if row.from_hub else None,
        "owner": row.owner.get_username() if row.owner else None,
        "lm": {"id": row.lm.pk, "name": row.lm.name} if row.lm else None,
        "dataset": {"id": dataset.pk, "name": dataset.name, "tokens": dataset.n_tokens} if dataset else None,
        "max_tokens": row.max_tokens,
        "options": row.options,
        **training.in_series(row),
        "files_url": reverse("import_files", args=[row.key]),
        "files": [_file(row, file) for file in sorted(row.files.all(), key=lambda file: file.name)],
        "report": row.report or None,
        "seconds": estimate.seconds(row),
        "sae": _sae(row),
        "job": _job(row),
        "created_at": row.created_at.isoformat(),
        "expires_at": expiry.isoformat() if (expiry := intake.expires(row)) else None,
    }


def _file(row: SaeImport, file: UploadFile) -> dict[str, Any]:
    return {
        "id": str(file.key),
        "url": reverse("import_file", args=[row.key, file.key]),
        "name": file.name,
        "size": file.size,
        "received": file.size if file.complete else file.received,
        "complete": file.complete,
        "kept": file.kept,
        "sha256": file.sha256 or None,
    }


def _sae(row: SaeImport) -> dict[str, Any] | None:
    if row.sae is None:
        return None
    public_id = row.sae.public_id
    return {"id": public_id, "name": row.sae.name, "url": reverse("sae_detail", args=[public_id])}


def _job(row: SaeImport) -> dict[str, Any] | None:
    if row.run is None:
        return None
    url, as_json = (reverse(name, args=[row.run.pk]) for name in ("run_detail", "run_json"))
    pages = reverse("sae_detail", args=[row.run.address])
    return {"id": row.run.pk, "state": row.run.state, "url": url, "json": as_json, "pages": pages}
