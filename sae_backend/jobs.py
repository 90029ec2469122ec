"""What workers do, with what they keep (kept.py). Every job may be killed at any line and run again."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone
from safetensors import SafetensorError

from sae_backend import (
    claims,
    faults,
    identity,
    intake,
    kept,
    locks,
    ownership,
    queue,
    relay,
    runs,
    series,
    slugs,
    spool,
    storage,
    store,
    summary,
)
from sae_backend.core import checkpoints, fidelity
from sae_backend.core.checkpoints import CheckpointError
from sae_backend.core.config import RunConfig
from sae_backend.core.decoder import features_per_dimension
from sae_backend.core.results import LatentShard
from sae_backend.core.run import RunError
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.helpful import sentence
from sae_backend.intake import importing, training
from sae_backend.intake.importing import Held
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae, SaeImport
from sae_backend.pulse import Abandoned, Pulse
from sae_backend.relay import Turn

MAX_DEATHS = 5  # of workers in one shard, none having done it: what ends each of them would do so for ever
logger = logging.getLogger(__name__)

# ---- runs ----------------------------------------------------------------------------------------


def run_config(**options: Any) -> dict[str, Any]:
    """A run's configuration with this machine's defaults and the versions that compute it."""
    config = asdict(RunConfig(**{"dtype": kept.compute_dtype(), **options}))
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "transformer-lens", "numba")}
    return {**config, "versions": versions}


def new_run(
    sae: Sae, dataset: Any, owner: Any = None, max_tokens: int | None = None, aside: bool = False, **options: Any
) -> Run:
    """A run with this machine's defaults, queued and sent; max_tokens bounds what it reads of the dataset."""
    run = runs.create(sae, dataset, run_config(**options), owner, max_tokens, aside)
    runs.log(run.pk, f"queued: {run.tokens_total:,} tokens of {dataset.name}, {sae.d_sae:,} latents")
    queue.start(run.pk)
    return run


def compute_contexts(run_id: int, index: int) -> None:
    """Encode one shard of contexts into the spool."""
    encode_all(run_id, filter(None, [claims.claim(run_id, RunShard.Kind.CONTEXTS, index, identity.worker())]))


def compute_contexts_onward(run_id: int, index: int) -> None:
    """Encode a shard of contexts and, for a while, those that nobody has; their messages find them done."""
    encode_all(run_id, claims.one_after_another(run_id, RunShard.Kind.CONTEXTS, index, identity.worker()))


def encode_all(run_id: int, shards: Iterable[RunShard]) -> None:
    """Encode shards of contexts as they are claimed, one being written while the next is computed."""
    relay.each(shards, _encode)
    queue.continue_after_contexts(run_id)


def _encode(shard: RunShard, turn: Turn) -> None:
    with _claimed(shard) as pulse:
        dataset = Dataset.objects.select_related("lm").get(runs=shard.run_id)
        tokens = store.read_contexts(dataset, shard.lo, shard.hi)
        run = kept.context_pass(shard.run_id)
        result = run.shard(tokens, shard.lo, shard.run.n_contexts, pulse.report, turn.pass_on)
        pulse.report(tokens.size)
        with spool.writing(shard) as path:
            checksum = result.save(path)
        if not claims.finish_contexts(shard, checksum):
            spool.remove(shard)


def load_latents(run_id: int, index: int) -> None:
    """Reduce one shard of latents and COPY its rows."""
    load_all(run_id, filter(None, [claims.claim(run_id, RunShard.Kind.LATENTS, index, identity.worker())]))


def load_latents_onward(run_id: int, index: int) -> None:
    """Load a shard of latents and, for a while, those that nobody has; their messages find them done."""
    load_all(run_id, claims.one_after_another(run_id, RunShard.Kind.LATENTS, index, identity.worker()))


def load_all(run_id: int, shards: Iterable[RunShard]) -> None:
    """Load shards of latents as they are claimed, the next one being computed while one is committed."""
    relay.each(shards, _load)
    queue.continue_after_latents(run_id)


def _load(shard: RunShard, turn: Turn) -> None:
    with _mended(), _claimed(shard) as pulse, closing(_reduce(shard, pulse, turn)) as pieces:
        store.load_latents(shard, pieces)


def _reduce(shard: RunShard, pulse: Pulse, turn: Turn) -> Generator[LatentShard, None, None]:
    """Pieces of a shard of latents, its share of the spool verified: all shards together read every file."""
    stored = shard.run.shards.filter(kind=RunShard.Kind.CONTEXTS).order_by("index")
    shares = shard.run.shards.filter(kind=RunShard.Kind.LATENTS).count()
    with _finding_lost(stored), spool.reading(stored), ThreadPoolExecutor(1) as aside:
        verified = aside.submit(spool.verify, list(stored[shard.index :: shares]))
        run = kept.latent_pass(shard.run_id, shard.run.computed_at)
        for piece in run.pieces(shard.lo, shard.hi, turn.pass_on):
            yield piece
            pulse.report(piece.hi - shard.lo)
        verified.result()  # whoever takes the pieces commits them only when we have ended well


@contextmanager
def _finding_lost(stored: Iterable[RunShard]) -> Iterator[None]:
    """Where the spool cannot be read, see whether files of it are lost: those can be computed again."""
    try:
        yield
    except (OSError, SafetensorError, storage.StorageError):
        spool.verify(stored)
        raise


@contextmanager
def _mended() -> Iterator[None]:
    """Have contexts whose file is lost computed again, and then the latents."""
    try:
        yield
    except spool.Lost as lost:
        logger.warning("lost from the spool: %s", lost)
        queue.recompute(lost.shards)


def publish(run_id: int) -> None:
    """Seal and publish a loaded run, then empty its spool.

    One that is cancelled and resumed meanwhile may be sealed again while we still hold it, and its message dropped:
    then we begin anew.
    """
    while _stopped_under_us(run_id) and Run.objects.filter(pk=run_id, state=Run.State.SEALED).exists():
        logger.info("run %s was stopped and is sealed again: its publication begins anew", run_id)
    kept.forget()


def _stopped_under_us(run_id: int) -> bool:
    try:
        _publish(run_id)
    except store.NotSealed as stopped:
        logger.info("left: %s", stopped)
        return True
    return False


def _publish(run_id: int) -> None:
    with locks.alone("publish", run_id) as mine:
        run = Run.objects.select_related("sae", "dataset").filter(pk=run_id).first()
        if run is None or not mine or run.state != Run.State.SEALED:
            return
        with _mended(), _explained(run_id), Pulse(lambda _: claims.touch(run_id)):
            with ThreadPoolExecutor(1) as aside:
                sealed = aside.submit(store.seal, run_id)  # PostgreSQL's work
                figures = _figures(run)
            sealed.result()
            store.publish(run_id, figures, told=(summary.in_words(figures), "published"))
            series.changed(run.sae)
            with suppress(storage.StorageError):  # then the next cleaning does it
                spool.empty(run_id)


def _figures(run: Run) -> dict[str, Any]:
    """Fidelity, scale and timing of a run, for its summary."""
    with _finding_lost(run.shards.filter(kind=RunShard.Kind.CONTEXTS)):
        latents = kept.latent_pass(run.pk, run.computed_at)
    sae = kept.sae(run.sae_id)
    now = timezone.now()
    seconds = {
        "contexts": (run.computed_at - run.started_at).total_seconds() if run.computed_at and run.started_at else None,
        "latents": (now - run.computed_at).total_seconds() if run.computed_at else None,
    }
    return {
        **fidelity.figures(latents.sums, sae.cfg),
        "contexts": run.n_contexts,
        "sample_tokens": latents.sample(),
        "features_per_dimension": features_per_dimension(sae.W_dec),
        "live_per_dimension": int(latents.live.sum()) / sae.cfg.d_out,
        "dtype": kept.config_of(run).dtype,
        "dtype_difference": kept.dtype_difference(run),
        "basis_by_layer": kept.basis_by_layer(run),
        "token_sets": kept.sets_of(run.sae.lm_id).described(),
        "device": kept.device(),
        "seconds": seconds,
    }


@contextmanager
def _claimed(shard: RunShard) -> Iterator[Pulse]:
    """Keep a claim alive while its work goes on, and give it back where that is left, for whatever reason."""
    try:
        with _explained(shard.run_id), Pulse(partial(claims.heartbeat, shard)) as pulse:
            _refuse_deadly(shard)
            yield pulse
    except BaseException as error:
        with suppress(*faults.DATABASE):
            if claims.give_back(shard) and isinstance(error, Abandoned):
                queue.send(shard)
        if not isinstance(error, Abandoned):
            raise
        logger.info("left %s %s to %s of run %s", shard.kind, shard.lo, shard.hi, shard.run_id)
    claims.give_back(shard)  # one that is done stays so; one that nobody wants any more is free
    claims.touch(shard.run_id)


def _refuse_deadly(shard: RunShard) -> None:
    if shard.deaths >= MAX_DEATHS:
        raise RunError(
            f"{shard.deaths} workers ended while they computed {shard.kind} {shard.lo:,} to {shard.hi:,}: perhaps for "
            "want of memory. Give workers more, or take smaller shards, and run again"
        )


@contextmanager
def _explained(run_id: int) -> Iterator[None]:
    """Fail the run with a sentence, but not for what passes: its work is done again."""
    try:
        yield
    except (Abandoned, spool.Lost, store.NotSealed):
        raise
    except Exception as error:
        if isinstance(error, faults.DATABASE):
            faults.leave_broken_connection()
        if faults.passes(error):
            raise
        runs.fail(run_id, sentence(error))
        if isinstance(error, faults.DATABASE):  # which would be tried again
            raise RunError(sentence(error)) from error
        raise


# ---- imports ---------------------------------------------------------------------------------------


def import_sae(import_id: int) -> None:
    """From a checkpoint's files to an SAE in the store, and a run where a dataset was chosen."""
    importing.carry_out(import_id, importing.IMPORT, _import)


def _import(held: Held) -> None:
    with intake.source_of(held.row) as source:
        loaded = checkpoints.load(source, **held.row.options)
        fitting = _fitting_hook(loaded, _chosen_lm(held.row))
        digest = loaded.identity()
        held.pulse.report(0)
        with transaction.atomic():
            sae, is_new = _found_or_created(held.row, source, loaded, fitting, digest)
            _finish(held, sae, is_new)


def _chosen_lm(row: SaeImport) -> LanguageModel:
    if row.lm is None:
        raise CheckpointError("no language model was chosen; check this import again with one")
    return row.lm


def _finish(held: Held, sae: Sae, is_new: bool) -> None:
    """The import is done and its run is there, or neither, as where it was cancelled meanwhile."""
    row = held.row
    run = None
    if row.dataset is not None:
        aside = not (is_new or ownership.may_lead(row, sae))
        run = new_run(sae, row.dataset, row.owner, row.max_tokens, aside)
    ended = {"state": SaeImport.State.DONE, "error": "", "done_at": timezone.now()}
    if not held.mine.update(sae=sae, run=run, **ended):
        raise Abandoned
    if not is_new:
        row.files.update(kept=False)


def _found_or_created(
    row: SaeImport, source: Path, loaded: SparseAutoencoder, hook_name: str, digest: str
) -> tuple[Sae, bool]:
    """The SAE of a checkpoint: found by its identity, or stored and created; whether it is new."""
    locks.one_at_a_time("sae")
    lm = _chosen_lm(row)
    known = Sae.objects.select_related("lm").filter(sha256=digest).first()
    if known is not None:
        if (row.series or row.step is not None) and ownership.may_lead(row, known):
            series.assign(known, **training.in_series(row))
        return _same_lm(known, lm), False
    name = slugs.distinct(row.name or source.name)
    hub = {"source": row.report["hub"]} if row.report.get("hub") else {}
    sae = Sae.objects.create(
        sha256=digest, name=name, slug=slugs.free(name, digest), lm=lm, hook_name=hook_name, owner=row.owner,
        hook_name_out=loaded.cfg.hook_name_out or "", architecture=loaded.cfg.architecture,
        format=loaded.cfg.format, d_in=loaded.cfg.d_in, d_out=loaded.cfg.d_out, d_sae=loaded.cfg.d_sae,
        k=loaded.cfg.k,
        metadata={**loaded.cfg.metadata, **hub, "overrides": row.options}, path=_keep(source, digest),
        **training.in_series(row),
    )  # fmt: skip
    series.changed(sae)
    return sae, True


def _same_lm(known: Sae, lm: LanguageModel) -> Sae:
    if known.lm_id != lm.pk:
        raise CheckpointError(
            f"these weights are here already, as {known.name} of {known.lm.name}, at /s/{known.public_id}: see its "
            "pages, or choose that language model to compute another run"
        )
    return known


def _fitting_hook(loaded: SparseAutoencoder, lm: LanguageModel) -> str:
    """The hook point, once the language model is known to have it with this width."""
    hook_name = loaded.cfg.hook_name
    if hook_name is None:
        raise CheckpointError(
            "the file does not say which hook point it was trained on; give it, for example "
            f"--hook-name blocks.{lm.n_layers // 2}.hook_resid_post"
        )
    width = kept.lm(lm.pk, kept.compute_dtype()).width(hook_name)
    if width != loaded.cfg.d_in:
        raise CheckpointError(
            f"d_in is {loaded.cfg.d_in}, but {hook_name} of {lm.name} is {width} wide: "
            "this SAE belongs to another language model or hook point"
        )
    return hook_name


def _keep(source: Path, digest: str) -> str:
    """Store the checkpoint's files under its identity; their folder, or the one file of it that was imported."""
    folder = f"checkpoints/{digest}"
    storage.current().keep(folder, checkpoints.list_files(source))
    return f"{folder}/{source.name}" if source.is_file() else folder
