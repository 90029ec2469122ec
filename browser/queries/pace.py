"""How fast runs go: what their workers did of late, and what an earlier run of similar width took."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import Case, F, Q, Sum, When

from sae_backend.models import Run, RunShard

PUBLISHED = (Run.State.LIVE, Run.State.RETIRED, Run.State.DROPPED)  # the last two by a later run

RECENT = timedelta(minutes=2)  # rates are measured over so long, and over a worker's last shard where that took longer
REMEMBERED = timedelta(hours=1)  # shards done before say nothing of the present
MOST = 400  # shards looked at for all rates together
EARLIER = 200  # published runs looked at
WIDER, LONGER = 2.0, 4.0  # an earlier run is similar within these factors of latents and of tokens


@dataclass(frozen=True)
class Piece:
    """What a worker is known to have done of one shard."""

    worker: str
    begun: datetime
    known: datetime  # when it was done, or the claim's latest sign
    items: float  # tokens or latents

    def since(self, moment: datetime) -> float:
        """What of it was done after a moment, if it went evenly."""
        whole = _seconds(self.begun, self.known)
        return self.items * min(1.0, _seconds(max(moment, self.begun), self.known) / whole) if whole else 0.0


def shards_at_work(runs: Iterable[int], now: datetime) -> dict[int, list[RunShard]]:
    """By run: the shards that workers hold, and those lately done, the newest first."""
    lately = Q(state=RunShard.State.DONE, done_at__gt=now - REMEMBERED) | Q(state=RunShard.State.CLAIMED)
    found: dict[int, list[RunShard]] = {}
    rows = RunShard.objects.filter(lately, run_id__in=list(runs), claimed_at__isnull=False)
    for shard in rows.order_by(Case(When(state=RunShard.State.CLAIMED, then=0), default=1), "-done_at")[:MOST]:
        found.setdefault(shard.run_id, []).append(shard)
    return found


def pieces(shards: Iterable[RunShard], kind: str, ctx_len: int) -> list[Piece]:
    """What is known of the shards of a kind, in tokens or latents."""
    size = ctx_len if kind == RunShard.Kind.CONTEXTS else 1
    return [_piece(shard, size) for shard in shards if shard.kind == kind and shard.claimed_at]


def _piece(shard: RunShard, size: int) -> Piece:
    over = shard.state == RunShard.State.DONE
    known = (shard.done_at if over else shard.heartbeat_at) or shard.claimed_at
    assert shard.claimed_at is not None and known is not None
    return Piece(shard.worker, shard.claimed_at, known, (shard.hi - shard.lo) * size if over else shard.progress)


def rate(done: Sequence[Piece], now: datetime) -> float | None:
    """Items a second of all workers that give signs, each over its own last work; None while nothing is known."""
    alive = {p.worker for p in done if _seconds(p.known, now) <= settings.STALLED_SECONDS}
    rates = [_own_rate([p for p in done if p.worker == worker], now) for worker in alive]
    return sum(rates) or None


def _own_rate(done: Sequence[Piece], now: datetime) -> float:
    known = [p for p in done if p.items and p.known > p.begun]
    if not known:
        return 0.0
    newest = max(known, key=lambda p: p.known)
    since = max(min(p.begun for p in known), min(newest.begun, now - RECENT))
    return sum(p.since(since) for p in known) / _seconds(since, newest.known)


@dataclass(frozen=True)
class Costs:
    """What an earlier run took."""

    token: float  # worker-seconds in the stage of contexts
    latent: float  # worker-seconds in the stage of latents
    publish: float  # seconds for each latent, of one worker


def of_earlier_runs(runs: Sequence[Run]) -> dict[int, Costs]:
    """For each run what the published one most like it took, if one of its language model is similar."""
    lms = {run.sae.lm_id for run in runs}
    earlier = Run.objects.filter(state__in=PUBLISHED, sae__lm__in=lms).select_related("sae").defer("summary")
    known = list(earlier.order_by("-pk")[:EARLIER]) if runs else []
    like = {run.pk: found for run in runs if (found := _most_like(run, known))}
    spent = _spent({run.pk for run in like.values()}) if like else {}
    costs = {run.pk: _costs(run, spent) for run in like.values()}
    return {pk: cost for pk, found in like.items() if (cost := costs[found.pk])}


def _most_like(run: Run, known: Sequence[Run]) -> Run | None:
    """The nearest in width, and of those the newest."""
    similar = [other for other in known if _similar(run, other)]
    return min(similar, key=lambda other: (_apart(run.sae.d_sae, other.sae.d_sae), -other.pk), default=None)


def _similar(run: Run, other: Run) -> bool:
    wide = _apart(run.sae.d_sae, other.sae.d_sae) <= math.log(WIDER)
    long = _apart(run.tokens_total, other.tokens_total) <= math.log(LONGER)
    return run.sae.lm_id == other.sae.lm_id and wide and long


def _apart(a: int, b: int) -> float:
    return abs(math.log(max(a, 1) / max(b, 1)))


def _spent(runs: set[int]) -> dict[tuple[int, str], float]:
    """Seconds that workers held a run's shards of a kind until these were done; waiting is not in it."""
    done = RunShard.objects.filter(run_id__in=runs, state=RunShard.State.DONE, claimed_at__isnull=False)
    took = Sum(F("done_at") - F("claimed_at"))
    held: Iterable[tuple[Any, ...]] = done.values_list("run_id", "kind").annotate(took=took)
    return {(run, kind): time.total_seconds() for run, kind, time in held}


def _costs(run: Run, spent: dict[tuple[int, str], float]) -> Costs | None:
    contexts, latents = (spent.get((run.pk, kind)) for kind in (RunShard.Kind.CONTEXTS, RunShard.Kind.LATENTS))
    if not contexts or not latents or not run.loaded_at or not run.live_at:
        return None
    publish = _seconds(run.loaded_at, run.live_at) / run.sae.d_sae
    return Costs(contexts / max(run.tokens_total, 1), latents / run.sae.d_sae, publish)


def _seconds(a: datetime, b: datetime) -> float:
    return max(0.0, (b - a).total_seconds())
