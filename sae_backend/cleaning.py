"""What is left behind: tables of superseded and stopped runs, activations in the spool, files of imports, and all of
SAEs that were deleted."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from sae_backend import intake, locks, presence, spool, storage, store
from sae_backend.models import RESUMABLE, UNFINISHED, DeletedSae, Run, Sae


def clean() -> None:
    """Drop what no run needs any more; one process at a time, as often as one likes."""
    with locks.alone("cleaning", 0) as mine:
        if mine:
            store.drop_leftovers()
            clean_deleted()
            store.drop_stopped(settings.RESUMABLE_DAYS)
            if settings.DROP_RETIRED_AFTER_DAYS:
                store.drop_retired(settings.DROP_RETIRED_AFTER_DAYS * 86400)
            clean_spool()
            intake.clean()
            presence.forget_gone()


def clean_deleted() -> list[str]:
    """Remove tables, activations and files of deleted SAEs; whose identities they had."""
    left = list(DeletedSae.objects.filter(cleaned_at=None).order_by("pk"))
    for sae in left:
        for run_id in sae.runs:
            store.drop_whatever(run_id)
            spool.empty(run_id)
        _remove_checkpoint(sae.sha256)
        DeletedSae.objects.filter(pk=sae.pk).update(cleaned_at=timezone.now())
    return [sae.sha256 for sae in left]


def _remove_checkpoint(sha256: str) -> None:
    """Unless the same weights were brought in again, which an import does in this section too."""
    with transaction.atomic():
        locks.one_at_a_time("sae")
        if not Sae.objects.filter(sha256=sha256).exists():
            storage.current().remove(f"checkpoints/{sha256}")


def clean_spool() -> list[int]:
    """Delete the activations of runs that have ended and cannot be resumed any more; which runs."""
    there = spool.runs()
    resumable = Q(state__in=RESUMABLE, stopped_at__gte=timezone.now() - timedelta(days=settings.RESUMABLE_DAYS))
    needed = Run.objects.filter(resumable | Q(state__in=UNFINISHED), pk__in=there).values_list("pk", flat=True)
    ended = sorted(there - set(needed))
    for run_id in ended:
        spool.empty(run_id)
    return ended
