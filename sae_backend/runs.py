"""The life of a run: created, moved on from stage to stage, stopped, and taken up again where it stopped."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from django.db import transaction
from django.utils import timezone

from sae_backend import store
from sae_backend.core.config import MOST_FILES, SHARD_LATENTS, RunConfig, shard_tokens
from sae_backend.models import UNFINISHED, Dataset, DeletedSae, LogLine, Run, RunShard, Sae


def create(
    sae: Sae, dataset: Dataset, config: dict[str, Any], owner: Any = None, max_tokens: int | None = None,
    aside: bool = False,
) -> Run:  # fmt: skip
    """A queued run with its shards and its stand-alone tables, over whole contexts of about max_tokens."""
    if dataset.lm_id != sae.lm_id:
        belongs = f"{dataset.name} is tokenized for {dataset.lm.name}; {sae.name} belongs to {sae.lm.name}"
        raise store.StoreError(belongs)
    cfg = RunConfig(**{k: v for k, v in config.items() if k in RunConfig.__dataclass_fields__})
    wanted = dataset.n_tokens if max_tokens is None else max_tokens
    n_contexts = min(dataset.n_contexts, -(-wanted // dataset.ctx_len))
    n_tokens = n_contexts * dataset.ctx_len
    with transaction.atomic():
        Sae.objects.select_for_update().get(pk=sae.pk)
        number = 1 + max([*sae.runs.values_list("number", flat=True), *earlier_numbers(sae)], default=0)
        run = Run.objects.create(
            sae=sae, number=number, dataset=dataset, config=config, tokens_total=n_tokens, owner=owner, aside=aside
        )
        store.create_tables(run.pk)
        tokens = max(shard_tokens(sae.d_sae), n_tokens // MOST_FILES)
        contexts = cfg.shard_contexts or max(1, tokens // dataset.ctx_len)
        shards = [*_shards(run, RunShard.Kind.CONTEXTS, n_contexts, contexts)]
        shards += _shards(run, RunShard.Kind.LATENTS, sae.d_sae, cfg.shard_latents or SHARD_LATENTS)
        RunShard.objects.bulk_create(shards)
    return run


def earlier_numbers(sae: Sae) -> list[int]:
    """The last run's numbers of the same weights that were here and deleted: pinned addresses had them."""
    return list(DeletedSae.objects.filter(sha256=sae.sha256).values_list("last_number", flat=True))


def _shards(run: Run, kind: str, n: int, size: int) -> Iterator[RunShard]:
    for i, lo in enumerate(range(0, n, size)):
        yield RunShard(run=run, kind=kind, index=i, lo=lo, hi=min(lo + size, n))


def log(run_id: int, text: str, level: str = "info") -> None:
    """A line of the run's log on its job page."""
    LogLine.objects.create(run_id=run_id, text=text, level=level)


def advance(run_id: int, kind: str, to: str) -> bool:
    """Move a run on once all its shards of a kind are done; True for the one caller that moved it."""
    contexts = kind == RunShard.Kind.CONTEXTS
    before = Run.State.COMPUTING if contexts else Run.State.LOADING
    stamp = {"computed_at" if contexts else "loaded_at": timezone.now()}
    with transaction.atomic():
        run = Run.objects.select_for_update().filter(pk=run_id).first()
        if run is None:  # deleted with its SAE
            return False
        left = run.shards.filter(kind=kind).exclude(state=RunShard.State.DONE).exists()
        if run.state != before or left:
            return False
        Run.objects.filter(pk=run_id).update(state=to, tokens_done=run.tokens_total, **stamp)
    return True


def took(run_id: int, kind: str) -> str:
    """What a stage that has ended took, for the log; it counts the time in which nobody worked too."""
    run = Run.objects.select_related("sae").get(pk=run_id)
    contexts = kind == RunShard.Kind.CONTEXTS
    begun, ended = (run.started_at, run.computed_at) if contexts else (run.computed_at, run.loaded_at)
    if begun is None or ended is None or ended <= begun:
        return ""
    n, unit = (run.tokens_total, "tokens") if contexts else (run.sae.d_sae, "latents")
    seconds = (ended - begun).total_seconds()
    return f": {n:,} {unit} in {seconds:,.1f} s, {n / seconds:,.0f} a second"


# ---- stopped, and taken up again -------------------------------------------------------------------


def fail(run_id: int, message: str) -> bool:
    """Stop a run with a message for people; what it has computed is kept for a while. A finished run is left alone."""
    stopped = _stop(run_id, Run.State.FAILED, message)
    if stopped:
        log(run_id, message, "error")
    return stopped


def cancel(run_id: int) -> bool:
    """Stop a run at its owner's wish; True unless it had ended."""
    stopped = _stop(run_id, Run.State.CANCELLED, "")
    if stopped:
        log(run_id, "cancelled; what is computed is kept for a while, and the run can be resumed")
    return stopped


def _stop(run_id: int, state: str, message: str) -> bool:
    unfinished = Run.objects.filter(pk=run_id, state__in=UNFINISHED)
    return bool(unfinished.update(state=state, error=message, stopped_at=timezone.now()))


def reopen(run_id: int, states: Collection[str], lost: Collection[int] = ()) -> bool:
    """Have a run in one of these states computed on; False when it is in another.

    Kept are the shards of contexts that are done and not lost, and, while nothing under them is lost, the latents.
    """
    with transaction.atomic():
        run = Run.objects.select_for_update().get(pk=run_id)
        if run.state not in states:
            return False
        latents = run.shards.filter(kind=RunShard.Kind.LATENTS)
        if lost or not store.holds(run):  # tables before shards: the order in which a loader locks them
            store.create_tables(run_id)
            latents.update(state=RunShard.State.TODO, progress=0, done_at=None)
        contexts = run.shards.filter(kind=RunShard.Kind.CONTEXTS)
        contexts.filter(index__in=lost).update(state=RunShard.State.TODO, progress=0, done_at=None)
        open_shards = run.shards.exclude(state=RunShard.State.DONE)
        open_shards.update(state=RunShard.State.TODO, progress=0, deaths=0)
        _set_stage(run, all_encoded=not open_shards.filter(kind=RunShard.Kind.CONTEXTS).exists())
    return True


def _set_stage(run: Run, all_encoded: bool) -> None:
    run.state = Run.State.COMPUTING if run.started_at else Run.State.QUEUED
    if all_encoded and run.computed_at:
        run.state = Run.State.LOADING
    else:
        run.computed_at = None
    run.error, run.stopped_at, run.loaded_at, run.heartbeat_at = "", None, None, timezone.now()
    run.save(update_fields=["state", "error", "computed_at", "loaded_at", "stopped_at", "heartbeat_at"])
