"""Language models and datasets that people ask for: the rows that workers take up, and what may be done with them.

Loads no torch: pages, programs and the shell all call these. The work itself is in adding.py.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import Now

from sae_backend import locks, storage, store
from sae_backend.intake import limits
from sae_backend.models import Addition, Dataset, LanguageModel, Run, Sae, SaeImport

State = Addition.State
OPEN = (State.QUEUED, State.RUNNING)
TEXTS = "texts"  # uploaded text, by its SHA-256, as long as anything is made of it
# What may be said of a dataset, beside where it is. `anywhere` and `token` are only set for those who may.
OPTIONS = {
    "ctx_len": "tokens in a context; without it the model's, at most 256",
    "max_tokens": "stop after so many tokens",
    "field": "field of JSON lines, or column of Parquet, with the text",
    "files": "of a repository or folder, a pattern such as en/*.jsonl.gz",
    "split": "of a repository, such as train",
}


class AdditionError(Exception):
    """A wish that cannot be granted, with a sentence that says what to do."""


def ask(kind: str, origin: str, name: str, source: str, owner: Any = None, **more: Any) -> Addition:
    """Queue what a worker is to add; the rest are fields of an Addition."""
    from sae_backend import queue

    row = Addition(kind=kind, origin=origin, name=name, source=source, owner=owner, **more)
    with transaction.atomic():
        locks.one_at_a_time(f"additions of {owner.pk if owner else 'nobody'}")
        _refuse_too_many(owner)
        row.save()
        transaction.on_commit(lambda: queue.send_addition(row.pk))
    return row


def _refuse_too_many(owner: Any) -> None:
    if Addition.objects.filter(owner=owner, state__in=OPEN).count() >= settings.MAX_OPEN_ADDITIONS:
        raise AdditionError(
            f"{settings.MAX_OPEN_ADDITIONS} models and datasets of yours are being added, the most there may be at "
            "once: wait for one, or cancel it"
        )


def for_other_lm(dataset: Dataset, lm: LanguageModel, owner: Any = None, token: bool = False) -> Addition:
    """Queue the same text for another language model's tokenizer."""
    recipe = dict(dataset.recipe)
    if not recipe:
        raise AdditionError(f"{dataset.name} was added before its source was kept: add the text again for {lm.name}")
    options = {**recipe.pop("options", {}), "token": token}
    return ask(Addition.Kind.DATASET, name=dataset.name, owner=owner, lm=lm, options=options, **recipe)


def recipe(row: Addition) -> dict[str, Any]:
    """What a dataset's row keeps, so that its text can be read again."""
    options = {key: value for key, value in row.options.items() if key != "token"}
    kept = ("origin", "source", "revision", "text_sha256", "text_bytes")
    return {"options": options, **{field: getattr(row, field) for field in kept}}


# ---- uploaded text -----------------------------------------------------------------------------------


def check_upload(name: str, size: int, owner: Any) -> None:
    """Refuse a file by its name and size, before it is read; AdditionError says what may come."""
    from sae_backend.core import text

    if not text.kind(name):
        readable = ", ".join(text.SUFFIXES)
        raise AdditionError(f"{name[-60:]!r} is none of {readable}, each perhaps packed as .gz or .zst: convert it")
    if size > settings.TEXT_MAX_BYTES:
        raise AdditionError(
            f"this file has {limits.in_words(size)} and {limits.in_words(settings.TEXT_MAX_BYTES)} may be uploaded: "
            "take a part of it, or put it on the hub or into a folder of the server"
        )
    mine = stored(owner)
    if mine + size > settings.TEXT_QUOTA_BYTES:
        raise AdditionError(
            f"you have {limits.in_words(mine)} of text here and this adds {limits.in_words(size)}; "
            f"{limits.in_words(settings.TEXT_QUOTA_BYTES)} are allowed: delete a dataset first"
        )


def stored(owner: Any) -> int:
    """Bytes of uploaded text that somebody has here, each file once."""
    files = Addition.objects.filter(owner=owner).exclude(text_sha256="").values("text_sha256", "text_bytes").distinct()
    return int(files.aggregate(total=Sum("text_bytes"))["total"] or 0)


def keep_text(path: Path) -> tuple[str, int]:
    """Store an uploaded file where workers find it; its SHA-256 and size."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    storage.current().keep(f"{TEXTS}/{digest}", {"text": path})
    return digest, path.stat().st_size


def forget_text(sha256: str) -> None:
    """Delete an uploaded file once nothing is or can be made of it."""
    if not sha256:
        return
    with transaction.atomic():
        locks.one_at_a_time(TEXTS)
        rows = Addition.objects.filter(text_sha256=sha256)
        if not rows.exists() and not Dataset.objects.filter(recipe__text_sha256=sha256).exists():
            storage.current().remove(f"{TEXTS}/{sha256}")


# ---- folders of the server ---------------------------------------------------------------------------


def allowed_folder(source: str) -> Path:
    """A file or folder below one of SOURCE_ROOTS, whatever links lead there; AdditionError for any other."""
    roots = [Path(root).resolve() for root in settings.SOURCE_ROOTS]
    path = Path(source).resolve()
    if not roots:
        raise AdditionError("no folder of this server is open for this: whoever runs it names some in SOURCE_ROOTS")
    if not Path(source).is_absolute() or not any(path.is_relative_to(root) for root in roots):
        raise AdditionError(f"give an absolute path below {' or '.join(map(str, roots))}")
    return path


# ---- what people do with them ------------------------------------------------------------------------


def cancel(row: Addition) -> bool:
    """Stop one that waits or runs; its worker hears of it within seconds."""
    ended = {"state": State.CANCELLED, "done_at": Now()}
    return bool(Addition.objects.filter(pk=row.pk, state__in=OPEN).update(**ended))


def again(row: Addition) -> bool:
    """Queue one again that failed or was cancelled."""
    from sae_backend import queue

    fresh = {"state": State.QUEUED, "error": "", "stage": "", "done": 0, "total": None, "attempts": 0, "done_at": None}
    stopped = Addition.objects.filter(pk=row.pk, state__in=(State.FAILED, State.CANCELLED))
    with transaction.atomic():
        queued = bool(stopped.update(heartbeat_at=Now(), **fresh))
        transaction.on_commit(lambda: queue.send_addition(row.pk) if queued else None)
    return queued


def forget(row: Addition) -> None:
    """Delete one that is over and came to nothing."""
    if row.state in OPEN:
        raise AdditionError("this is under way: cancel it first")
    row.delete()
    forget_text(row.text_sha256)


def used_by(what: LanguageModel | Dataset) -> list[str]:
    """What keeps a language model or a dataset from being deleted, in words."""
    if isinstance(what, LanguageModel):
        found = {"SAE": what.saes.count(), "data set": what.datasets.count()}
        under_way = SaeImport.objects.filter(lm=what)
    else:
        found = {"run": Run.objects.filter(dataset=what).count()}
        under_way = SaeImport.objects.filter(dataset=what)
    found["import under way"] = _unfinished(under_way).count()
    return [f"{n} {word}{'s' * (n > 1 and word != 'import under way')}" for word, n in found.items() if n]


def _unfinished(imports: QuerySet[SaeImport]) -> QuerySet[SaeImport]:
    over = (SaeImport.State.DONE, SaeImport.State.FAILED, SaeImport.State.CANCELLED)
    return imports.exclude(state__in=over)


def remove_lm(lm: LanguageModel) -> None:
    """Delete a language model that nothing uses, with the copy of its files that workers share."""
    with transaction.atomic():
        LanguageModel.objects.select_for_update().get(pk=lm.pk)
        _refuse_used(lm)
        SaeImport.objects.filter(lm=lm).update(lm=None)
        lm.delete()
    storage.current().remove(f"models/{lm.sha256}")


def remove_dataset(dataset: Dataset) -> None:
    """Delete a dataset that no run is on, with its contexts, and its text where it was uploaded; needs autocommit."""
    with transaction.atomic():
        Dataset.objects.select_for_update().get(pk=dataset.pk)
        _refuse_used(dataset)
        SaeImport.objects.filter(dataset=dataset).update(dataset=None)
        pk = dataset.pk
        dataset.delete()
    store.drop_contexts(pk)
    forget_text(dataset.recipe.get("text_sha256", ""))


def _refuse_used(what: LanguageModel | Dataset) -> None:
    if users := used_by(what):
        raise AdditionError(f"{what.name} is used by {', '.join(users)}: delete what uses it first")


def saes_on(dataset: Dataset) -> QuerySet[Sae]:
    """The SAEs that have a run on a dataset."""
    return Sae.objects.filter(Q(runs__dataset=dataset)).distinct()


def matching(files: Iterable[str], pattern: str) -> list[str]:
    """The paths that a pattern means, whose * goes over slashes."""
    return sorted(path for path in files if fnmatch.fnmatchcase(path, pattern))
