"""How far the decoder directions of a series' checkpoints are from the final ones: a worker's part of series.py."""

from __future__ import annotations

from django.db import transaction
from django.utils import timezone

from sae_backend import kept, locks, series
from sae_backend.core.alignment import row_cosines
from sae_backend.models import Sae, SeriesCosine


def align(sae_id: int) -> None:
    """Store the cosines of each member of an SAE's series to the final one, where they are not there yet."""
    sae = Sae.objects.filter(pk=sae_id).first()
    if sae is None or not sae.series:
        SeriesCosine.objects.filter(sae_id=sae_id).delete()
        return
    members = list(series.members(sae))
    if not members:
        return
    *earlier, final = members
    stale = SeriesCosine.objects.filter(sae__in=members).exclude(sae__in=earlier, final=final)
    stale.delete()
    known = set(SeriesCosine.objects.filter(final=final).values_list("sae_id", flat=True))
    for member in earlier:
        if member.pk not in known:
            _store(member, final)
            Sae.objects.filter(pk=final.pk).update(series_at=timezone.now())  # a sign of life: series.resend
    series.members(sae).update(series_at=timezone.now())


def _store(member: Sae, final: Sae) -> None:
    cos = row_cosines(*(kept.sae.__wrapped__(sae.pk).W_dec for sae in (member, final)))  # not kept beside the run's
    with transaction.atomic():
        locks.one_at_a_time("series")
        if Sae.objects.filter(pk__in=(member.pk, final.pk)).count() == 2:
            given = {"final": final, "cos": cos.astype("<f4").tobytes()}
            SeriesCosine.objects.update_or_create(sae=member, defaults=given)
