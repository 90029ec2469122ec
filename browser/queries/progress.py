"""How far a run is: its stages with what is done, how fast, and how long yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from browser.queries import pace
from browser.queries.pace import PUBLISHED, Costs
from browser.queries.stages import PARTS, Part, Queue, Shards, Stage
from sae_backend.models import RESUMABLE, UNFINISHED, Run, RunShard

State, Kind = Run.State, RunShard.Kind
ORDER = (State.QUEUED, State.COMPUTING, State.LOADING, State.SEALED)
WEIGHTS = (0.0, 0.8, 0.18, 0.02)  # of the stages in the whole, while no earlier run tells


@dataclass(frozen=True)
class Progress:
    """A run with the state of its shards at one moment."""

    run: Run
    contexts: Shards = Shards()
    latents: Shards = Shards()
    recent: list[RunShard] = field(default_factory=list)  # held by workers, or lately done
    costs: Costs | None = None
    queue: Queue = Queue()
    indexes: tuple[int, int] = (0, 0)  # made and wanted, while it is being published
    now: datetime = field(default_factory=timezone.now)

    @property
    def unfinished(self) -> bool:
        return self.run.state in UNFINISHED

    @property
    def published(self) -> bool:
        return self.run.state in PUBLISHED

    @property
    def over(self) -> bool:
        """Failed or cancelled."""
        return self.run.state in RESUMABLE

    @property
    def claims(self) -> list[RunShard]:
        """Shards that workers hold."""
        held = [shard for shard in self.recent if shard.state == RunShard.State.CLAIMED] if self.unfinished else []
        return sorted(held, key=lambda shard: (shard.kind, shard.index))

    @property
    def workers(self) -> list[str]:
        """Those that hold a shard and give signs."""
        alive = self.now - timedelta(seconds=settings.STALLED_SECONDS)
        return sorted({shard.worker for shard in self.claims if shard.heartbeat_at and shard.heartbeat_at > alive})

    @property
    def seen(self) -> datetime:
        """The latest sign of life."""
        return self.run.heartbeat_at or self.run.started_at or self.run.created_at

    @property
    def stalled(self) -> bool:
        """Nobody has touched it for settings.STALLED_SECONDS, and it does not just stand behind another run."""
        behind = self.queue.moving and not self.claims
        return self.unfinished and not behind and self.silent > settings.STALLED_SECONDS

    @property
    def silent(self) -> float:
        """Seconds since the latest sign of life."""
        return (self.now - self.seen).total_seconds()

    @property
    def status(self) -> str:
        """The state's name, or "stalled"."""
        return "stalled" if self.stalled else str(self.run.state)

    @property
    def bar(self) -> str:
        """The class of its progress bar."""
        idle = dict.fromkeys(("stalled", "queued", "cancelled"), "idle")
        return {"live": "done", "retired": "done", "dropped": "done", "failed": "fail", **idle}.get(self.status, "")

    @property
    def waited(self) -> float | None:
        return self.stages[0].seconds

    @property
    def took(self) -> float | None:
        """Seconds from the first shard to the pages."""
        return _between(self.run.started_at, self.run.live_at)

    @property
    def tokens_done(self) -> int:
        """Tokens of finished shards and of claims: run.tokens_done is only as new as the last heartbeat."""
        counted = self.contexts.items_done * self.run.dataset.ctx_len + self.contexts.working
        return min(self.run.tokens_total, max(self.run.tokens_done, counted))

    @property
    def again(self) -> int:
        """Shards that needed more than one attempt."""
        return self.contexts.again + self.latents.again

    @cached_property
    def stages(self) -> list[Stage]:
        return [self._stage(i, part) for i, part in enumerate(PARTS)]

    @property
    def current(self) -> Stage | None:
        """The stage it is in, or ended in."""
        return next((stage for stage in self.stages if stage.state not in {"done", "todo"}), None)

    @property
    def stage_number(self) -> int:
        """Of the stage it is in, from 1."""
        return 1 + sum(stage.state == "done" for stage in self.stages)

    @property
    def measured(self) -> list[Stage]:
        """Stages whose speed is known."""
        return [stage for stage in self.stages if stage.rate]

    @property
    def latents_done(self) -> int:
        return self.stages[2].done

    @property
    def rate(self) -> float | None:
        return self.current.rate if self.current else None

    @property
    def left(self) -> float | None:
        """Seconds until it is published, later stages included; None where any of them is unknown."""
        rest = [stage.left for stage in self.stages if stage.state in {"current", "todo"}]
        known = [seconds for seconds in rest if seconds is not None]
        return sum(known) if self.unfinished and not self.stalled and len(known) == len(rest) else None

    @property
    def share(self) -> float:
        """Per cent of the whole."""
        if self.published:
            return 100.0
        weights = self._expected() or WEIGHTS
        return sum(w * stage.share for w, stage in zip(weights, self.stages, strict=True)) / sum(weights)

    def _expected(self) -> tuple[float, ...] | None:
        """Worker-seconds of each stage, by an earlier run."""
        if self.costs is None:
            return None
        c, d_sae = self.costs, self.run.sae.d_sae
        return 0.0, c.token * self.run.tokens_total, c.latent * d_sae, c.publish * d_sae

    def _stage(self, i: int, part: Part) -> Stage:
        state = self._state_of(i, part)
        done, total = self._counts(i, state == "done")
        seconds = self._seconds(part, state)
        rate = self._rate(i, state, done, seconds)
        left = self._left(i, state, total - done, total, rate, seconds) if self.unfinished else None
        return Stage(part, state, done, total, seconds, rate, left)

    def _state_of(self, i: int, part: Part) -> str:
        """Where a stage stands; a run that failed did so in the first stage that had not ended."""
        if self.published:
            return "done"
        if self.unfinished:
            at = ORDER.index(State(self.run.state))
            return "done" if i < at else "current" if i == at else "todo"
        at = next((n for n, p in enumerate(PARTS) if getattr(self.run, p.ended) is None), len(PARTS))
        return "done" if i < at else str(self.run.state) if i == at else "todo"

    def _counts(self, i: int, over: bool) -> tuple[int, int]:
        """Done and total of a stage, in its unit."""
        if i == 1:
            return (self.run.tokens_total if over else self.tokens_done), self.run.tokens_total
        if i == 2:
            items = self.latents.items
            return (items if over else min(items, self.latents.items_done + self.latents.working)), items
        return self.indexes if i == 3 else (0, 0)

    def _seconds(self, part: Part, state: str) -> float | None:
        """How long a stage has lasted; it stands still once the stage, or the run, has ended."""
        if state == "todo":
            return None
        running = self.now if state == "current" else self.run.stopped_at
        return _between(getattr(self.run, part.begun), getattr(self.run, part.ended) or running)

    def _rate(self, i: int, state: str, done: int, seconds: float | None) -> float | None:
        if state == "current" and i in (1, 2):
            kind = (Kind.CONTEXTS, Kind.LATENTS)[i - 1]
            return pace.rate(pace.pieces(self.recent, kind, self.run.dataset.ctx_len), self.now)
        return done / seconds if state == "done" and i in (1, 2) and done and seconds else None

    def _left(
        self, i: int, state: str, rest: int, total: int, rate: float | None, seconds: float | None
    ) -> float | None:
        """Seconds at the measured rate, else by an earlier run's."""
        if state not in {"current", "todo"} or self.stalled:
            return None
        if i == 0:
            return self.queue.seconds
        if rate:
            return rest / rate
        expected = self._expected()
        if expected is None:
            return None
        if i == 3:
            return max(0.0, expected[3] - (seconds or 0.0))
        return expected[i] * (rest / total if total else 1.0) / max(1, len(self.workers))

    def as_json(self) -> dict[str, Any]:
        run, stage = self.run, self.current
        sae = {"id": run.sae.public_id, "name": run.sae.name, "url": reverse("sae_detail", args=[run.sae.public_id])}
        return {
            "id": run.pk, "number": run.number, "sae": sae, "model": run.sae.lm.name, "hook_name": run.sae.hook_name,
            "dataset": run.dataset.name, "asked_by": run.owner.get_username() if run.owner else None,
            "pinned": run.pinned, "state": run.state, "stalled": self.stalled, "error": run.error or None,
            "stage": stage.name if stage else None, "share": round(self.share / 100, 4),
            "tokens_done": self.tokens_done, "tokens_total": run.tokens_total,
            "latents_done": self.latents_done, "latents_total": self.stages[2].total,
            "rate": self.rate, "rate_unit": f"{stage.unit}/s" if stage and self.rate else None,
            "seconds_left": self.left, "place": self.queue.place if run.state == State.QUEUED else None,
            "stages": [stage.as_json() for stage in self.stages],
            "shards": {"contexts": _shards(self.contexts), "latents": _shards(self.latents)},
            "workers": [_claim(shard) for shard in self.claims],
            "created": _iso(run.created_at), "started": _iso(run.started_at), "live": _iso(run.live_at),
            "ended": _iso(run.stopped_at), "heartbeat": _iso(run.heartbeat_at),
            "url": reverse("run_detail", args=[run.pk]), "pages": reverse("sae_detail", args=[run.address]),
        }  # fmt: skip


def _shards(shards: Shards) -> dict[str, int]:
    return {"done": shards.done, "total": shards.total, "attempted_again": shards.again}


def _claim(shard: RunShard) -> dict[str, Any]:
    place = {"kind": shard.kind, "lo": shard.lo, "hi": shard.hi, "attempt": shard.attempts}
    return {"worker": shard.worker, **place, "claimed": _iso(shard.claimed_at), "heartbeat": _iso(shard.heartbeat_at)}


def _between(a: datetime | None, b: datetime | None) -> float | None:
    return max(0.0, (b - a).total_seconds()) if a and b else None


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
