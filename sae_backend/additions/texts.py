"""Uploaded text: refused by its name and size, stored by its SHA-256, as long as anything is made of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Sum

from sae_backend import locks, storage
from sae_backend.additions.errors import AdditionError
from sae_backend.core import text
from sae_backend.intake import limits
from sae_backend.intake.errors import TooLarge
from sae_backend.models import Addition, Dataset

TEXTS = "texts"


def check_name(name: str) -> None:
    """Refuse a file that is not read as text."""
    if not text.kind(name):
        readable = ", ".join(text.SUFFIXES)
        raise AdditionError(f"{name[-60:]!r} is none of {readable}, each perhaps packed as .gz or .zst: convert it")


def check_size(size: int, owner: Any) -> None:
    """Refuse a file by its size, as soon as that is known."""
    if size > settings.TEXT_MAX_BYTES:
        raise TooLarge(
            f"this file has {limits.in_words(size)} and {limits.in_words(settings.TEXT_MAX_BYTES)} may be uploaded: "
            "take a part of it, or put it on the hub or into a folder of the server"
        )
    mine = stored(owner)
    if mine + size > settings.TEXT_QUOTA_BYTES:
        raise TooLarge(
            f"you have {limits.in_words(mine)} of text here and this adds {limits.in_words(size)}; "
            f"{limits.in_words(settings.TEXT_QUOTA_BYTES)} are allowed: delete a dataset first"
        )


def stored(owner: Any) -> int:
    """Bytes of uploaded text that somebody has here, each file once."""
    files = Addition.objects.filter(owner=owner).exclude(text_sha256="").values("text_sha256", "text_bytes").distinct()
    return int(files.aggregate(total=Sum("text_bytes"))["total"] or 0)


def hold(sha256: str) -> None:
    """Keep an uploaded file from being forgotten until our transaction ends, which makes something of it."""
    locks.one_at_a_time(TEXTS)
    if not storage.current().names(f"{TEXTS}/{sha256}"):
        raise AdditionError("this text was deleted meanwhile, with the last data set made of it: upload it again")


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
