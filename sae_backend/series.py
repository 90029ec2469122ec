"""Series: checkpoints of one SAE in training, told apart by their step. A latent has the same index in all of them.

Members have the name of the series, the owner, language model, hook points and shape in common. The last is called the
final one; workers keep every other member's cosines to it (aligning.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from itertools import groupby

from django.db.models import Q, QuerySet
from django.utils import timezone

from sae_backend import queue
from sae_backend.models import Sae

_NUMBER = r"(?P<n>\d{1,15})(?P<unit>[kKmM]?)"
_WORDS = r"steps?|checkpoints?|ckpts?|iter(?:ation)?s?|samples|tokens|final"
_STEP = re.compile(rf"^(?:(?P<base>.*?)[-_. ])?(?:{_WORDS})[-_=. ]?{_NUMBER}$", re.I)
_OF_TRAINER = re.compile(rf"^ae_{_NUMBER}$", re.I)  # dictionary_learning: trainer_0/checkpoints/ae_1000.pt
_BARE = re.compile(rf"^{_NUMBER}$")  # SAELens: checkpoints/<run>/50000000
_FOLDER = re.compile(r"^(?:checkpoints?|ckpts?)$", re.I)
_SUFFIX = re.compile(r"[-_. ](?:checkpoints?|ckpts?)$", re.I)
_EXTENSION = re.compile(r"\.(?:pt|pth|bin|npz|safetensors|zip|tar|tgz|tar\.gz)$", re.I)
_UNITS = {"": 1, "k": 1000, "m": 10**6}
_SAME = ("series", "owner_id", "lm_id", "hook_name", "hook_name_out", "d_sae", "d_out")


def recognised(path: str) -> tuple[str, int] | None:
    """The series and step that a checkpoint's path tells, as training libraries name their folders; None without.

    >>> recognised("topk_ckpts/step_00087.pt")
    ('topk', 87)
    """
    parts = [_EXTENSION.sub("", part) for part in re.split(r"[\\/]+", path) if part not in ("", ".")]
    if not parts:
        return None
    *folders, last = parts
    found = _STEP.match(last)
    if found is None and any(_FOLDER.match(folder) for folder in folders[-2:]):
        found = _OF_TRAINER.match(last) or _BARE.match(last)
    if found is None:
        return None
    name = (found.groupdict().get("base") or "").strip(" -_.") or _named_after(folders)
    step = int(found["n"]) * _UNITS[found["unit"].lower()]
    return (name[:200], step) if name and step < 2**63 else None  # what PostgreSQL holds


def _named_after(folders: Sequence[str]) -> str:
    """The nearest folder that says more than that checkpoints are in it; a trainer's number with its folder."""
    telling = [_SUFFIX.sub("", folder) for folder in folders if not _FOLDER.match(folder)]
    several = re.fullmatch(r"trainer_\d+", telling[-1]) if telling else None
    return "/".join(telling[-2 if several else -1 :])


def members(sae: Sae) -> QuerySet[Sae]:
    """All checkpoints of its series by step, itself among them; none where it is in no series."""
    if not sae.series:
        return Sae.objects.none()
    same = {name: getattr(sae, name) for name in _SAME}
    return Sae.objects.filter(**same, step__isnull=False).order_by("step", "pk")


def assign(sae: Sae, series: str, step: int | None) -> None:
    """Put an SAE into a series, or take it out with no name; what it leaves and what it joins are compared anew."""
    before = list(members(sae).exclude(pk=sae.pk)[:1])
    sae.series, sae.step = (series, step) if series and step is not None else ("", None)
    sae.save(update_fields=["series", "step"])
    for one in [sae, *before]:
        changed(one)


def changed(sae: Sae) -> None:
    """Pages of the series are made anew, and a worker compares those members that it has not."""
    members(sae).update(series_at=timezone.now())
    if sae.series:
        queue.align(sae.pk)
    else:
        Sae.objects.filter(pk=sae.pk).update(series_at=timezone.now())


def resend(silent_seconds: float) -> int:
    """Have compared what no worker has: a message was lost, or who took it ended. How many series.

    Only with an empty queue: while messages wait, this one may be among them.
    """
    if queue.waiting():
        return 0
    silent = Q(series_at=None) | Q(series_at__lte=timezone.now() - timedelta(seconds=silent_seconds))
    found = 0
    for final in _uncompared():
        # compare and set: of several workers that look, one sends
        if Sae.objects.filter(silent, pk=final).update(series_at=timezone.now()):
            queue.align(final)
            found += 1
    return found


def _uncompared() -> list[int]:
    """The final ones of series with a member that is not compared with it."""
    rows = Sae.objects.exclude(series="").filter(step__isnull=False).order_by(*_SAME, "step", "pk")
    found = []
    for _, same in groupby(rows.values_list(*_SAME, "pk", "series_cosine__final_id"), key=lambda row: row[:-2]):
        *earlier, final = [row[-2:] for row in same]
        if any(compared_with != final[0] for _, compared_with in earlier):
            found.append(final[0])
    return found
