"""What runs leave behind: tables of superseded runs, and activations in the spool."""

from __future__ import annotations

import shutil

from django.conf import settings

from sae_backend import locks, spool, store
from sae_backend.models import UNFINISHED, Run


def clean() -> None:
    """Drop what no run needs any more; one process at a time, as often as one likes."""
    with locks.alone("cleaning", 0) as mine:
        if mine:
            store.drop_leftovers()
            if settings.DROP_RETIRED_AFTER_DAYS:
                store.drop_retired(settings.DROP_RETIRED_AFTER_DAYS * 86400)
            clean_spool()


def clean_spool() -> list[int]:
    """Delete the activations of runs that have ended, however they did; which runs."""
    there = {int(p.name) for p in spool.folder(0).parent.glob("*") if p.name.isdigit()}
    needed = Run.objects.filter(pk__in=there, state__in=UNFINISHED).values_list("pk", flat=True)
    ended = sorted(there - set(needed))
    for run_id in ended:
        shutil.rmtree(spool.folder(run_id), ignore_errors=True)
    return ended
