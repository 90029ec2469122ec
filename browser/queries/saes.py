"""Which SAE and run an address means."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

from django.db import connection
from django.db.models import QuerySet
from django.urls import reverse
from django.utils.safestring import SafeString

from browser.errors import NotFound, NotReady, RunDropped, RunNotFound, SaeAmbiguous, SaeDeleted, SaeNotFound
from sae_backend.models import DeletedSae, Run, Sae

# Runs whose pages can be read: the live one, and superseded ones until they are dropped.
READABLE = (Run.State.LIVE, Run.State.RETIRED)


@dataclass(frozen=True)
class ResolvedSae:
    """An SAE and the run whose rows its pages show. Pass run.pk to queries; never follow sae.current_run."""

    sae: Sae
    run: Run
    pinned: bool = False  # the address names the run, so links on the page keep it
    drawn: dict[str, SafeString] = field(default_factory=dict, compare=False)  # by kept_tags.py

    @property
    def address(self) -> str:
        """What stands after /s/ in the links of its pages."""
        return self.pin if self.pinned else self.sae.public_id

    @cached_property
    def url(self) -> str:
        """Where its page is; those of its latents are below that: /s/<sae>/<index>."""
        return reverse("sae_detail", args=[self.address])

    @cached_property
    def pinned_url(self) -> str:
        """The same by the address that names the run."""
        return reverse("sae_detail", args=[self.pin])

    @property
    def pin(self) -> str:
        """The address that names the run, whether or not this one does."""
        return f"{self.sae.public_id}@r{self.run.number}"


def all_saes() -> QuerySet[Sae]:
    """SAEs with their language model, live run and its dataset, without the vocabulary's bytes."""
    return Sae.objects.select_related("lm", "current_run__dataset").defer("lm__vocabulary")


def resolve(ref: str) -> ResolvedSae:
    """The SAE and readable run that an address means; reads the pointer to the live run once.

    Raises SaeNotFound, SaeAmbiguous, RunNotFound or NotReady, which become pages with status 404.
    """
    versions = _versions(ref)
    known = _known.get(ref)
    if known is None or known[0] != versions:
        known = versions, _resolved(ref)
        with _one:
            _known.pop(ref if ref in _known or len(_known) < MOST_KNOWN else next(iter(_known)), None)
            _known[ref] = known
    return known[1]


MOST_KNOWN = 64  # with their runs' summaries
_known: dict[str, tuple[list[tuple[Any, ...]], ResolvedSae]] = {}  # by address, while the rows behind it are the same
_one = Lock()
_VERSIONS = """
    select s.id, s.xmin::text, s.ctid::text, l.xmin::text, l.ctid::text,
           r.id, r.xmin::text, r.ctid::text, d.xmin::text, d.ctid::text
    from sae_backend_sae s join sae_backend_languagemodel l on l.id = s.lm_id
    left join sae_backend_run r on {run}
    left join sae_backend_dataset d on d.id = r.dataset_id
    where s.sha256 like %s limit 2
"""
_OF_LIVE = _VERSIONS.format(run="r.id = s.current_run_id")
_OF_PINNED = _VERSIONS.format(run="r.sae_id = s.id and r.number = %s")


def _versions(ref: str) -> list[tuple[Any, ...]]:
    """Which versions of which rows an address means now; that is quicker asked than a run's summary is read."""
    prefix, _, number = ref.partition("@r")
    with connection.cursor() as cursor:
        cursor.execute(_OF_PINNED, [int(number), f"{prefix}%"]) if number else cursor.execute(_OF_LIVE, [f"{prefix}%"])
        return cursor.fetchall()


def _resolved(ref: str) -> ResolvedSae:
    prefix, _, number = ref.partition("@r")
    sae = find(prefix)
    if number:
        return ResolvedSae(sae, _kept_run(sae, int(number)), pinned=True)
    if sae.current_run is None:
        raise NotReady(sae, latest_run(sae))
    sae.current_run.sae = sae
    return ResolvedSae(sae, sae.current_run)


def find(prefix: str) -> Sae:
    """The SAE whose identity begins so, computed or not; one query when it is there."""
    found = list(all_saes().filter(sha256__startswith=prefix).order_by("sha256")[:5])
    if not found:
        if left := DeletedSae.objects.filter(sha256__startswith=prefix).order_by("-pk").first():
            raise SaeDeleted(left)
        raise SaeNotFound(prefix, close_to(prefix))
    if len(found) > 1:
        raise SaeAmbiguous(prefix, found)
    return found[0]


def any_computed() -> Sae:
    """A computed SAE, each latent of the site as likely."""
    computed = list(Sae.objects.filter(current_run__isnull=False).only("pk", "sha256", "d_sae"))
    if not computed:
        raise NotFound("There is no latent yet", "No SAE is computed.")
    return random.choices(computed, [sae.d_sae for sae in computed])[0]


def called(slug: str) -> Sae | None:
    """The SAE that is, or was, called so; None where none ever was."""
    sae = all_saes().filter(slug=slug).first() or all_saes().filter(former_slugs__slug=slug).first()
    if sae is None and (left := DeletedSae.objects.filter(slugs__contains=[slug]).order_by("-pk").first()):
        return find(left.sha256)  # here again, or deleted
    return sae


def close_to(prefix: str) -> list[Sae]:
    """Up to 5 SAEs that share the longest beginning with `prefix`, for whoever mistyped it."""
    for length in range(min(len(prefix), 12) - 1, 1, -1):
        found = list(all_saes().filter(sha256__startswith=prefix[:length]).order_by("sha256")[:5])
        if found:
            return found
    return []


def _kept_run(sae: Sae, number: int) -> Run:
    runs = sae.runs.filter(state__in=READABLE).select_related("dataset").order_by("number")
    kept = {run.number: run for run in runs}
    if number not in kept:
        if _was_here(sae, number):
            raise RunDropped(sae, number)
        raise RunNotFound(sae, number, list(kept))
    kept[number].sae = sae
    return kept[number]


def _was_here(sae: Sae, number: int) -> bool:
    """Whether a run was given up: dropped, or deleted with its SAE before the same weights came again."""
    dropped = sae.runs.filter(number=number, state=Run.State.DROPPED)
    before = DeletedSae.objects.filter(sha256=sae.sha256, last_number__gte=number)
    return dropped.exists() or (number > 0 and before.exists() and not sae.runs.filter(number=number).exists())


def newer_run(resolved: ResolvedSae) -> Run | None:
    """An unfinished run that will take the place of the one shown."""
    waiting = (Run.State.QUEUED, Run.State.COMPUTING, Run.State.LOADING, Run.State.SEALED)
    newer = resolved.sae.runs.filter(number__gt=resolved.run.number, state__in=waiting, aside=False)
    return None if resolved.pinned else newer.order_by("-number").first()


def latest_run(sae: Sae) -> Run | None:
    """The SAE's newest run, whatever became of it."""
    return sae.runs.select_related("dataset").order_by("-number").first()
