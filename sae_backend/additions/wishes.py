"""What people ask for: the rows that workers take up, and how they are stopped, tried again and forgotten."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from sae_backend import locks, queue
from sae_backend.additions.errors import AdditionError
from sae_backend.additions.texts import forget_text, hold
from sae_backend.models import Addition, Dataset, LanguageModel

State = Addition.State
OPEN = (State.QUEUED, State.RUNNING)
# What may be said of a dataset, beside where it is. `anywhere` and `token` are only set for those who may.
OPTIONS = {
    "ctx_len": "tokens in a context; without it the model's, at most 256",
    "max_tokens": "stop after so many tokens",
    "field": "field of JSON lines, or column of Parquet, with the text",
    "files": "of a repository or folder, a pattern such as en/*.jsonl.gz",
    "split": "of a repository, such as train",
}


def ask(kind: str, origin: str, name: str, source: str, owner: Any = None, **more: Any) -> Addition:
    """Queue what a worker is to add; the rest are fields of an Addition."""
    row = Addition(kind=kind, origin=origin, name=name, source=source, owner=owner, **more)
    with transaction.atomic():
        locks.one_at_a_time(f"additions of {owner.pk if owner else 'nobody'}")
        _refuse_too_many(owner)
        if row.text_sha256:
            hold(row.text_sha256)
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


# ---- once they are asked for ------------------------------------------------------------------------


def cancel(row: Addition) -> bool:
    """Stop one that waits or runs; its worker hears of it within seconds."""
    ended = {"state": State.CANCELLED, "done_at": Now()}
    return bool(Addition.objects.filter(pk=row.pk, state__in=OPEN).update(**ended))


def again(row: Addition) -> bool:
    """Queue one again that failed or was cancelled."""
    shown = {"state": State.QUEUED, "error": "", "stage": "", "done": 0, "total": None, "done_at": None}
    counted = {"tries": 0, "attempts": F("attempts") + 1}  # a worker that is still at it is too late
    stopped = Addition.objects.filter(pk=row.pk, state__in=(State.FAILED, State.CANCELLED))
    with transaction.atomic():
        queued = bool(stopped.update(heartbeat_at=Now(), **shown, **counted))
        transaction.on_commit(lambda: queue.send_addition(row.pk) if queued else None)
    return queued


def forget(row: Addition) -> None:
    """Delete one that is over and came to nothing."""
    if row.state in OPEN:
        raise AdditionError("this is under way: cancel it first")
    row.delete()
    forget_text(row.text_sha256)
