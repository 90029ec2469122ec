"""What is left behind: tables of superseded and stopped runs, activations in the spool, files of imports."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db.models import Q
from django.utils import timezone

from sae_backend import intake, locks, spool, store
from sae_backend.models import RESUMABLE, UNFINISHED, Run


def clean() -> None:
    """Drop what no run needs any more; one process at a time, as often as one likes."""
    with locks.alone("cleaning", 0) as mine:
        if mine:
            store.drop_leftovers()
            store.drop_stopped(settings.RESUMABLE_DAYS)
            if settings.DROP_RETIRED_AFTER_DAYS:
                store.drop_retired(settings.DROP_RETIRED_AFTER_DAYS * 86400)
            clean_spool()
            intake.clean()


def clean_spool() -> list[int]:
    """Delete the activations of runs that have ended and cannot be resumed any more; which runs."""
    there = spool.runs()
    resumable = Q(state__in=RESUMABLE, stopped_at__gte=timezone.now() - timedelta(days=settings.RESUMABLE_DAYS))
    needed = Run.objects.filter(resumable | Q(state__in=UNFINISHED), pk__in=there).values_list("pk", flat=True)
    ended = sorted(there - set(needed))
    for run_id in ended:
        spool.empty(run_id)
    return ended
