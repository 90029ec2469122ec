"""How much people may bring in: at once, in an hour, and in all; and what the disk can take."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone

from sae_backend import locks
from sae_backend.intake.errors import Full, TooLarge, TooMany
from sae_backend.models import SaeImport, UploadFile

State = SaeImport.State
OPEN = (State.RECEIVING, State.CHECKING, State.WAITING, State.QUEUED, State.RUNNING)
UNITS = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


def in_words(size: int) -> str:
    """A number of bytes as people say it, in binary units."""
    unit, name = next(((unit, name) for unit, name in UNITS if size >= unit), (1, "bytes"))
    return f"{size / unit:.1f}".removesuffix(".0") + f" {name}"


def _of(owner: Any) -> Q:
    """Imports of a person; those of nobody came by the browser without an account, or from the shell, which is free."""
    return Q(owner=owner) if owner is not None else Q(owner=None) & (Q(source="") | Q(from_hub=True))


def _mine(owner: Any) -> QuerySet[SaeImport]:
    return SaeImport.objects.filter(_of(owner))


def stored(owner: Any) -> int:
    """Bytes of a person's files that are here, on their way, or stored as checkpoints."""
    files = UploadFile.objects.filter(of__in=_mine(owner), kept=True)
    return int(files.aggregate(total=Sum("size"))["total"] or 0)


def one_by_one(owner: Any) -> None:
    """Have what one person asks for at the same time counted one after the other; inside a transaction."""
    locks.one_at_a_time(f"imports of {owner.pk if owner is not None else 'nobody'}")


def check_opening(owner: Any) -> None:
    """Refuse one import more than a person may have open, or begin in an hour."""
    if _mine(owner).filter(state__in=OPEN).count() >= settings.MAX_OPEN_IMPORTS:
        raise TooMany(
            f"you have {settings.MAX_OPEN_IMPORTS} imports that are not over, the most there may be at once: finish or "
            "cancel one of them first"
        )
    lately = timezone.now() - timedelta(hours=1)
    if _mine(owner).filter(created_at__gt=lately).count() >= settings.UPLOADS_PER_HOUR:
        raise TooMany(
            f"you have begun {settings.UPLOADS_PER_HOUR} imports within an hour, the most that are allowed: "
            "go on in a while"
        )


def check_adding(row: SaeImport, size: int) -> None:
    """Refuse a file that makes an import, or all that its owner has here, too large."""
    present = int(row.files.aggregate(total=Sum("size"))["total"] or 0)
    if present + size > settings.UPLOAD_MAX_BYTES:
        raise TooLarge(
            f"this makes {in_words(present + size)}; one import may have {in_words(settings.UPLOAD_MAX_BYTES)} here: "
            "leave out what is not the SAE's weights and configuration"
        )
    mine = stored(row.owner)
    if mine + size > settings.UPLOAD_QUOTA_BYTES:
        raise TooLarge(
            f"you have {in_words(mine)} here and this would add {in_words(size)}; "
            f"{in_words(settings.UPLOAD_QUOTA_BYTES)} are allowed: delete an SAE or cancel an import first"
        )


class Room:
    """Looks at the free space again and again while something is written: others write too."""

    EVERY = 16 << 20  # bytes between two looks

    def __init__(self, place: Path) -> None:
        self.place, self.left = place, self.EVERY

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            check_room(self.place, size)
            self.left = self.EVERY


def check_room(place: Path, needed: int) -> None:
    """Refuse to begin what would leave less free space than the site needs for everything else."""
    there = os.statvfs(place)
    free = there.f_bavail * there.f_frsize
    if free - needed < settings.UPLOAD_RESERVE_BYTES:
        raise Full(
            f"the server has {in_words(free)} of free space and cannot take {in_words(needed)} more: "
            "what has arrived is kept; try again once whoever runs the site has made room"
        )
