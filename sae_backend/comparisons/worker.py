"""How a worker compares two SAEs: their directions, then both on the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from django.db import connection, transaction
from django.db.models import F

from sae_backend import kept, queue, store, taking
from sae_backend.compared import BLOBS
from sae_backend.comparisons import packed
from sae_backend.comparisons.errors import ComparisonError
from sae_backend.comparisons.wishes import why_not
from sae_backend.core import compare as core
from sae_backend.core.compare import Half, Pair, Tally
from sae_backend.core.matching import Bools, Side
from sae_backend.core.neighbours import Directions
from sae_backend.core.precision import spread
from sae_backend.models import Comparison, Run, Sae
from sae_backend.taking import Step

State = Comparison.State
COMPARE = Step("comparison", State.QUEUED, State.RUNNING, State.FAILED, queue.send_comparison)
Held = taking.Staged[Comparison]
# Of a number of the weights: both matrices and the encoder's copy, unit rows, those in bfloat16, and what blocks need.
BYTES, ROOM = 16, 1 << 30
TOO_LARGE = (
    "comparing {} and {} takes about {:.0f} GB of memory, and this worker has {:.0f} GB: start a worker where there is "
    "more, then try it again"
)

GONE = "the run that {} showed was taken away meanwhile: try it again once its pages are there"


def compare(comparison_id: int) -> None:
    """Compare what waits, unless another worker is at it or nobody wants it any more."""
    rows = Comparison.objects.defer(*BLOBS).select_related("a__lm", "b__lm", "a__current_run", "b__current_run")
    taking.carry_out(Held, rows, comparison_id, COMPARE, _compare)


def _compare(held: Held) -> None:
    a, b = held.row.a, held.row.b
    if reason := why_not(a, b):
        raise ComparisonError(reason)
    _refuse_too_large(a, b)
    runs = _runs(a, b)
    live = [_live(run, sae.d_sae) for run, sae in zip(runs, (a, b), strict=True)]
    found = _directions(held, (a, b), live)
    contexts = _sample(runs[0])
    tallies = _measured(held, (a, b), found, runs, contexts)
    arrays = [
        Side(*cos, fired, tally.fires.astype(np.uint32), tally.both.astype(np.uint32))
        for cos, fired, tally in zip(found, live, tallies, strict=True)
    ]
    blobs = packed.blobs("a", arrays[0]) | packed.blobs("b", arrays[1])
    _keep(held, summary=_summary(runs, contexts, tallies), **blobs)


def _keep(held: Held, **made: Any) -> None:
    """What was found, and pages of both SAEs that know of it, or neither."""
    with transaction.atomic():
        held.finish(**made)
        Sae.objects.filter(pk__in=(held.row.a_id, held.row.b_id)).order_by("pk").update(compared=F("compared") + 1)


def _refuse_too_large(a: Sae, b: Sae) -> None:
    """What is kept of other SAEs and models gives way first."""
    wanted = sum(sae.d_sae * (sae.d_in + sae.d_out) // 2 * BYTES for sae in (a, b)) + ROOM
    if wanted > kept.free():
        kept.forget_models()
        if wanted > (there := kept.free()):
            raise ComparisonError(TOO_LARGE.format(a.name, b.name, wanted / 1e9, there / 1e9))


def _runs(a: Sae, b: Sae) -> list[Run]:
    """The runs that both SAEs' pages show; the first one's text is what both are measured on."""
    rows = Run.objects.select_related("dataset__lm", "sae__lm")
    shown = rows.in_bulk([sae.current_run_id for sae in (a, b) if sae.current_run_id])
    for sae in (a, b):
        if sae.current_run_id not in shown:
            raise ComparisonError(GONE.format(sae.name))
    return [shown[int(sae.current_run_id or 0)] for sae in (a, b)]


def _live(run: Run, n: int) -> Bools:
    live = np.ones(n, bool)
    with connection.cursor() as cursor:
        cursor.execute("select index from latent where run_id = %s and status = 0", [run.pk])
        live[[index for (index,) in cursor.fetchall()]] = False
    return live


def _directions(held: Held, saes: tuple[Sae, Sae], live: list[Bools]) -> list[tuple[Any, Any]]:
    """ids, cosines of both."""
    dtype = getattr(torch, kept.compute_dtype())
    rows = [Directions(kept.sae(sae.pk).W_dec, dtype) for sae in saes]
    out = []
    for this, other in ((0, 1), (1, 0)):
        words = f"directions of {saes[this].name} against those of {saes[other].name}"[:100]
        report = held.stage(words, saes[this].d_sae, "latents")
        out.append(core.counterparts(rows[this], rows[other], live[other], report))
    return out


def _sample(run: Run) -> list[int]:
    """Contexts spread evenly over those that the run read."""
    return spread(run.n_contexts, max(1, core.SAMPLE_TOKENS // run.dataset.ctx_len))


def _measured(
    held: Held, saes: tuple[Sae, Sae], found: list[tuple[Any, Any]], runs: list[Run], contexts: list[int]
) -> tuple[Tally, Tally]:
    report = held.stage("both on the same text", len(contexts) * runs[0].dataset.ctx_len, "tokens")
    tokens = np.concatenate([store.read_contexts(runs[0].dataset, c, c + 1) for c in contexts])
    halves = [Half.of(kept.sae(sae.pk), *cos) for sae, cos in zip(saes, found, strict=True)]
    dtype = kept.compute_dtype()
    model = kept.lm(saes[0].lm_id, dtype)
    return Pair(halves[0], halves[1], model, getattr(torch, dtype), kept.special_of(runs[0])).measure(tokens, report)


def _summary(runs: list[Run], contexts: list[int], tallies: tuple[Tally, Tally]) -> dict[str, Any]:
    """What both were measured on, and the figures of each on it."""
    dataset = runs[0].dataset
    sides = {
        side: {"run": run.number, "run_id": run.pk, **tally.figures()}
        for side, run, tally in zip("ab", runs, tallies, strict=True)
    }
    sample = {"dataset": dataset.name, "dataset_id": dataset.pk, "contexts": len(contexts)}
    return {**sample, "tokens": tallies[0].sums.tokens, "dtype": kept.compute_dtype(), **sides}
