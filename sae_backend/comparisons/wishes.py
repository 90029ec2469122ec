"""What people ask for: two SAEs compared, the row that a worker takes up, and how it is stopped and tried again."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Now

from sae_backend import locks, queue
from sae_backend.compared import BLOBS
from sae_backend.comparisons.errors import ComparisonError
from sae_backend.models import Comparison, Sae

State = Comparison.State
OPEN = (State.QUEUED, State.RUNNING)
AFRESH = {"state": State.QUEUED, "error": "", "stage": "", "done": 0, "total": None, "done_at": None, "tries": 0}


def why_not(one: Sae, other: Sae) -> str:
    """Why two SAEs cannot be compared, in a sentence; "" where they can."""
    names = one.name, other.name
    if one.pk == other.pk:
        return f"{one.name} is compared with another SAE, not with itself: choose a second one."
    if one.lm_id != other.lm_id:
        return "{} and {} belong to different language models: their directions have nothing in common.".format(*names)
    if (one.hook_name, one.hook_name_out) != (other.hook_name, other.hook_name_out):
        at = [" to ".join(filter(None, (sae.hook_name, sae.hook_name_out))) for sae in (one, other)]
        return f"{one.name} is at {at[0]} and {other.name} at {at[1]}: only SAEs at the same hook point are compared."
    if (one.d_in, one.d_out) != (other.d_in, other.d_out):
        widths = one.name, one.d_out, other.name, other.d_out
        return "{} writes vectors of {} numbers and {} of {}: they cannot be compared.".format(*widths)
    return _not_ready(one) or _not_ready(other)


def _not_ready(sae: Sae) -> str:
    return "" if sae.current_run_id else f"{sae.name} has no pages yet: wait until its first run is done."


def between(one: Sae, other: Sae) -> Comparison | None:
    """The comparison of two SAEs, whichever is named first, without its arrays."""
    a, b = sorted((one.pk, other.pk))
    return Comparison.objects.defer(*BLOBS).filter(a=a, b=b).first()


def ask(one: Sae, other: Sae, owner: Any = None) -> Comparison:
    """Queue a comparison; one that is under way or done stays as it is, unless one of the two has a newer run.

    It belongs to who asked last and had it computed: that one may cancel it.
    """
    if reason := why_not(one, other):
        raise ComparisonError(reason)
    first, second = sorted((one, other), key=lambda sae: sae.pk)
    with transaction.atomic():
        locks.one_at_a_time("comparisons")
        row = between(first, second)
        if row is not None and (row.state in OPEN or not (stopped(row) or outdated(row, one, other))):
            return row
        _refuse_too_many(owner)
        if row is None:
            row = Comparison.objects.create(a=first, b=second, owner=owner)
        else:
            _afresh(row, owner)
        pk = row.pk
        transaction.on_commit(lambda: queue.send_comparison(pk))
    return row


def stopped(row: Comparison) -> bool:
    return row.state in (State.FAILED, State.CANCELLED)


def outdated(row: Comparison, one: Sae, other: Sae) -> bool:
    """Whether it was made of runs that one of the SAEs does not show any more."""
    made_of = {(row.summary.get(side) or {}).get("run_id") for side in "ab"}
    return row.state == State.DONE and made_of != {one.current_run_id, other.current_run_id}


def _refuse_too_many(owner: Any) -> None:
    if Comparison.objects.filter(owner=owner, state__in=OPEN).count() >= settings.MAX_OPEN_COMPARISONS:
        raise ComparisonError(
            f"{settings.MAX_OPEN_COMPARISONS} comparisons of yours are under way, the most there may be at once: wait "
            "for one, or cancel it"
        )


def _afresh(row: Comparison, owner: Any) -> None:
    """Queue it again; a worker that is still at it is too late. What pages show of the one before goes."""
    if row.state == State.DONE:
        Sae.objects.filter(pk__in=(row.a_id, row.b_id)).update(compared=F("compared") + 1)
    fresh = {**AFRESH, "owner": owner}
    Comparison.objects.filter(pk=row.pk).update(heartbeat_at=Now(), attempts=F("attempts") + 1, **fresh)
    row.refresh_from_db(fields=[*fresh, "attempts"])


def cancel(row: Comparison) -> bool:
    """Stop one that waits or runs; its worker hears of it within seconds."""
    under_way = Comparison.objects.filter(pk=row.pk, state__in=OPEN)
    return bool(under_way.update(state=State.CANCELLED, done_at=Now()))


def again(row: Comparison) -> bool:
    """Queue one again that failed or was cancelled."""
    counted = {"attempts": F("attempts") + 1, "heartbeat_at": Now()}
    over = Comparison.objects.filter(pk=row.pk, state__in=(State.FAILED, State.CANCELLED))
    with transaction.atomic():
        queued = bool(over.update(**AFRESH, **counted))
        transaction.on_commit(lambda: queue.send_comparison(row.pk) if queued else None)
    return queued


def hold(sae: Sae) -> None:
    """Lock the comparisons of an SAE before its own row, as who finishes one does: the other way round both wait."""
    list(Comparison.objects.filter(Q(a=sae) | Q(b=sae)).order_by("pk").select_for_update().values_list("pk"))


def touch(sae: Sae) -> None:
    """Let the pages of all SAEs compared with this one be made anew: it is called otherwise, or goes."""
    pairs = Comparison.objects.filter(Q(a=sae) | Q(b=sae), state=State.DONE).values_list("a", "b")
    others = {pk for pair in pairs for pk in pair} - {sae.pk}
    Sae.objects.filter(pk__in=others).update(compared=F("compared") + 1)
