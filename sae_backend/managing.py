"""What people change of an SAE that is here: its name, what they say of it, its runs, and whether it stays."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from sae_backend import comparisons, locks, queue, runs, series, slugs
from sae_backend.core.config import RunConfig
from sae_backend.models import RESUMABLE, UNFINISHED, Dataset, DeletedSae, FormerSlug, Run, Sae

DTYPES = ("float32", "bfloat16")
DROPPABLE = (Run.State.RETIRED, *RESUMABLE)
COMPUTING_PACKAGES = ("torch", "transformers", "transformer-lens", "numba")
# What people say of an SAE, by field; `links` is a list of addresses, the others are text.
ABOUT = ("hook_point", "training_data", "licence", "links", "notes")


class ManagingError(Exception):
    """A wish that the state of things does not allow, with a sentence that says what to do."""


def rename(sae: Sae, name: str) -> None:
    """Call an SAE otherwise; the address with its old name goes on leading to it."""
    with transaction.atomic():
        locks.one_at_a_time("sae")  # in which slugs are taken
        old = Sae.objects.select_for_update(no_key=True).get(pk=sae.pk)
        slug = slugs.free(name, old.sha256)
        if slug != old.slug:
            FormerSlug.objects.filter(slug=slug).delete()  # its own: it is called so again
            FormerSlug.objects.create(slug=old.slug, sae=old)
        Sae.objects.filter(pk=sae.pk).update(name=name, slug=slug)
        comparisons.touch(sae)
    sae.refresh_from_db(fields=["name", "slug"])


def describe(sae: Sae, about: Mapping[str, Any]) -> None:
    """Replace what people say of an SAE; what is empty is left out."""
    sae.about = {field: about[field] for field in ABOUT if about.get(field)}
    sae.save(update_fields=["about"])


# ---- runs --------------------------------------------------------------------------------------------


def rerun(sae: Sae, dataset: Dataset, dtype: str = "", max_tokens: int | None = None, owner: Any = None) -> Run:
    """Queue another run; its pages take the place of the present ones once it is done."""
    if not dataset.ready:
        raise ManagingError(f"{dataset.name} is not ready yet; wait until its text is tokenized, or choose another")
    config = asdict(RunConfig(dtype=dtype or usual_dtype(sae)))  # type: ignore[arg-type]  # which the form has checked
    versions = {name: importlib.metadata.version(name) for name in COMPUTING_PACKAGES}
    with transaction.atomic():
        run = runs.create(sae, dataset, {**config, "versions": versions}, owner, max_tokens)
        runs.log(run.pk, f"queued: {run.tokens_total:,} tokens of {dataset.name}, {sae.d_sae:,} latents")
        queue.start(run.pk)
    return run


def usual_dtype(sae: Sae) -> str:
    """What workers here compute in: the web server cannot ask their hardware, but earlier runs say what they took."""
    if settings.COMPUTE_DTYPE != "auto":
        return settings.COMPUTE_DTYPE
    before = Run.objects.order_by("-pk").values_list("config__dtype", flat=True)
    found = before.filter(sae=sae).first() or before.first()
    return found if found in DTYPES else "float32"


def pin(run: Run, pinned: bool) -> None:
    """Keep a run for ever, whatever cleaning there is, or no longer."""
    if run.state == Run.State.DROPPED:
        raise ManagingError(f"r{run.number} is dropped: there is nothing left to keep")
    Run.objects.filter(pk=run.pk).update(pinned=pinned)


def share(run: Run) -> None:
    """Remember that a link pinned to a run was given out or followed: from now on no cleaning drops it."""
    if run.shared_at is None:
        Run.objects.filter(pk=run.pk, shared_at=None).update(shared_at=(now := timezone.now()))
        run.shared_at = now


def drop(run: Run) -> None:
    """Give up a superseded or stopped run: its pages, or what it has computed, are gone for good."""
    with transaction.atomic():
        run = Run.objects.select_for_update().get(pk=run.pk)
        if reason := _why_kept(run):
            raise ManagingError(reason)
        Run.objects.filter(pk=run.pk).update(state=Run.State.DROPPED)
        queue.clean()


def _why_kept(run: Run) -> str:
    if run.state in UNFINISHED:
        return f"r{run.number} is {run.state}: cancel it first"
    if run.state == Run.State.LIVE:
        return f"r{run.number} is what the pages show: compute another run first, or delete the SAE"
    if run.state == Run.State.DROPPED:
        return f"r{run.number} is dropped already"
    return f"r{run.number} is kept: let it go first" if run.pinned else ""


# ---- the whole SAE -----------------------------------------------------------------------------------


def delete(sae: Sae) -> DeletedSae:
    """Take an SAE from the site at once; workers remove its files and tables after it.

    Runs under way are stopped: their workers find their claims gone. Imports of it stay, as history.
    """
    with transaction.atomic():
        locks.one_at_a_time("sae")  # nobody imports it meanwhile
        list(sae.runs.select_for_update())  # runs before their SAE: the order in which a publication locks them
        comparisons.hold(sae)
        sae = Sae.objects.select_for_update().get(pk=sae.pk)
        left, others = _what_is_left(sae), list(series.members(sae).exclude(pk=sae.pk)[:1])
        comparisons.touch(sae)  # which go with it
        sae.imports.update(sae=None, run=None)
        Sae.objects.filter(pk=sae.pk).update(current_run=None)
        sae.runs.all().delete()
        sae.delete()
        for other in others:
            series.changed(other)
        queue.clean()
    return left


def _what_is_left(sae: Sae) -> DeletedSae:
    numbers = dict(sae.runs.values_list("pk", "number"))
    names = [sae.slug, *sae.former_slugs.values_list("slug", flat=True)]
    return DeletedSae.objects.create(
        sha256=sae.sha256, name=sae.name, slugs=names, runs=sorted(numbers),
        last_number=max([0, *numbers.values(), *runs.earlier_numbers(sae)]),
    )  # fmt: skip
