"""Runs as jobs: what each is doing, how far it is, and when it may be done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar

from django.conf import settings
from django.db.models import Count, F, Max, Q, QuerySet, Sum
from django.urls import reverse
from django.utils import timezone

from browser.errors import NotFound
from sae_backend.models import LogLine, Run, RunShard, SaeImport

State = Run.State
ACTIVE = (State.COMPUTING, State.LOADING)
UNFINISHED = (State.QUEUED, *ACTIVE, State.SEALED)
LISTED = 50  # finished runs on the list of jobs
LOG_LINES = 200


@dataclass(frozen=True)
class Shards:
    """How many of a run's shards of one kind there are, and what is in those that are done."""

    total: int = 0
    done: int = 0
    items: int = 0  # contexts or latents in all
    items_done: int = 0  # of them in shards that are done
    claimed: int = 0  # shards that a worker holds
    working: int = 0  # done so far inside claims, in tokens or latents
    last: datetime | None = None  # when the latest was done


@dataclass(frozen=True)
class Stage:
    """A part of a run that has its own progress."""

    name: str
    means: str
    state: str  # done, current, todo, failed
    done: int = 0
    total: int = 0
    unit: str = ""
    seconds: float | None = None  # taken so far, or in all
    left: float | None = None  # seconds at the measured rate

    @property
    def share(self) -> float:
        """Per cent done."""
        return 100.0 if self.state == "done" else 100 * self.done / self.total if self.total else 0.0


@dataclass(frozen=True)
class Progress:
    """A run with the state of its shards at one moment."""

    run: Run
    contexts: Shards = Shards()
    latents: Shards = Shards()
    now: datetime = field(default_factory=timezone.now)

    @property
    def stalled(self) -> bool:
        """A worker holds part of it and has given no sign for settings.STALLED_SECONDS."""
        held = self.contexts.claimed + self.latents.claimed
        seen = self.run.heartbeat_at or self.run.started_at
        return bool(held and self.run.state in ACTIVE and seen and _between(seen, self.now) > settings.STALLED_SECONDS)

    @property
    def status(self) -> str:
        """The state's name, or "stalled"."""
        return "stalled" if self.stalled else str(self.run.state)

    @property
    def unfinished(self) -> bool:
        return self.run.state in UNFINISHED

    @property
    def bar(self) -> str:
        """The class of its progress bar."""
        return {"live": "done", "failed": "fail", "stalled": "idle", "queued": "idle"}.get(self.status, "")

    @property
    def waited(self) -> float:
        """Seconds from when it was asked for until it began, or until now."""
        return _between(self.run.created_at, self.run.started_at or self.now)

    @property
    def tokens_done(self) -> int:
        """Tokens of finished shards and of claims: run.tokens_done is only as new as the last heartbeat."""
        counted = self.contexts.items_done * self.run.dataset.ctx_len + self.contexts.working
        return min(self.run.tokens_total, max(self.run.tokens_done, counted))

    @property
    def rate(self) -> float | None:
        """Tokens a second, measured over the whole of the first stage."""
        begun, ended = self.run.started_at, self.run.computed_at or self.now
        seconds = _between(begun, ended) if begun else 0.0
        return self.tokens_done / seconds if seconds > 0 and self.tokens_done else None

    @cached_property
    def stages(self) -> list[Stage]:
        return [self._contexts(), self._latents(), self._publishing()]

    @property
    def current(self) -> Stage | None:
        return next((stage for stage in self.stages if stage.state in {"current", "failed"}), None)

    @property
    def share(self) -> float:
        """Per cent of the whole: contexts count for eight tenths, latents for two, publishing for none."""
        if self.run.state in {State.LIVE, State.RETIRED, State.SEALED}:
            return 100.0
        return 0.8 * self.stages[0].share + 0.2 * self.stages[1].share

    @property
    def left(self) -> float | None:
        """Seconds until its present stage is done, where a rate is known."""
        return self.current.left if self.current and not self.stalled else None

    @property
    def took(self) -> float | None:
        return _between(self.run.started_at, self.run.live_at) if self.run.started_at and self.run.live_at else None

    def _contexts(self) -> Stage:
        run, done = self.run, self.tokens_done
        state = self._state(State.COMPUTING, bool(run.computed_at))
        left = (run.tokens_total - done) / self.rate if self.rate and state == "current" else None
        ended = run.computed_at or (run.heartbeat_at if state == "failed" else self.now)
        seconds = _between(run.started_at, ended) if run.started_at and ended else None
        means = "The language model reads every context once; all latents are encoded and counted"
        return Stage(
            "Contexts",
            means,
            state,
            done,
            run.tokens_total,
            "tokens",
            seconds if state != "todo" else None,
            left,
        )

    def _latents(self) -> Stage:
        shards = self.latents
        over = self.run.state in {State.SEALED, State.LIVE, State.RETIRED, State.DROPPED}
        state = self._state(State.LOADING, over)
        done = shards.items if over else min(shards.items, shards.items_done + shards.working)
        begun = self.run.computed_at
        seconds = _between(begun, (shards.last if over else None) or self.now) if begun and state != "todo" else None
        left = seconds * (shards.items - done) / done if seconds and done and state == "current" else None
        means = "Statistics, logit effects and decoder neighbours are worked out and written"
        return Stage("Latents", means, state, done, shards.items, "latents", seconds, left)

    def _publishing(self) -> Stage:
        live = self.run.state in {State.LIVE, State.RETIRED, State.DROPPED}
        state = "done" if live else self._state(State.SEALED, False)
        begun, ended = self.latents.last, self.run.live_at or self.now
        seconds = _between(begun, ended) if begun and state in {"done", "current"} else None
        return Stage(
            "Publish",
            "Tables are indexed and checked, then the SAE's pages show this run",
            state,
            seconds=seconds,
        )

    def _state(self, at: str, over: bool) -> str:
        """Where a stage stands; a run that failed did so in the first stage that was not over."""
        if over:
            return "done"
        if self.run.state in {State.FAILED, State.CANCELLED}:
            first = State.LOADING if self.run.computed_at else State.COMPUTING
            return "failed" if at == first else "todo"
        return "current" if self.run.state == at else "todo"

    def as_json(self) -> dict[str, Any]:
        run = self.run
        return {
            "id": run.pk,
            "number": run.number,
            "sae": {
                "id": run.sae.public_id,
                "name": run.sae.name,
                "url": reverse("sae_detail", args=[run.sae.public_id]),
            },
            "model": run.sae.lm.name,
            "hook_name": run.sae.hook_name,
            "dataset": run.dataset.name,
            "state": run.state,
            "stalled": self.stalled,
            "error": run.error or None,
            "tokens": {"done": self.tokens_done, "total": run.tokens_total, "per_second": self.rate},
            "shards": {"contexts": _counts(self.contexts), "latents": _counts(self.latents)},
            "stages": [
                {k: getattr(s, k) for k in ("name", "state", "done", "total", "seconds", "left")} for s in self.stages
            ],
            "created": _iso(run.created_at),
            "started": _iso(run.started_at),
            "live": _iso(run.live_at),
            "heartbeat": _iso(run.heartbeat_at),
            "url": reverse("run_detail", args=[run.pk]),
        }


@dataclass(frozen=True)
class RunPage:
    """A job's page, and with _run_live.html the part of it that changes."""

    progress: Progress
    log: list[LogLine]
    claims: list[RunShard]
    template: ClassVar[str] = "browser/run_detail.html"


@dataclass(frozen=True)
class RunList:
    """The list of jobs; with _runs_live.html the part that changes."""

    unfinished: list[Progress]
    finished: list[Progress]
    imports: list[SaeImport]
    template: ClassVar[str] = "browser/run_list.html"

    @property
    def changing(self) -> bool:
        return bool(self.unfinished) or any(i.state != SaeImport.State.FAILED for i in self.imports)


def page(pk: int) -> RunPage:
    """One job: the run, its shards, its last log lines, and the claims of workers."""
    run = _runs().filter(pk=pk).first()
    if run is None:
        raise NotFound(f"There is no job {pk}", "Jobs are numbered in the order in which they were asked for.")
    log = list(run.log.order_by("-pk")[:LOG_LINES])[::-1]
    claims = list(run.shards.filter(state=RunShard.State.CLAIMED).order_by("kind", "index"))
    return RunPage(progress_of([run])[0], log, claims)


def listing() -> RunList:
    """Unfinished jobs, the latest finished ones, and imports that are not done."""
    finished = _runs().exclude(state__in=UNFINISHED).order_by("-pk")[:LISTED]
    imports = SaeImport.objects.exclude(state=SaeImport.State.DONE).select_related("lm").defer("lm__vocabulary")
    return RunList(unfinished(), [Progress(run) for run in finished], list(imports.order_by("-pk")[:LISTED]))


def unfinished() -> list[Progress]:
    """Runs that wait or compute, the oldest first."""
    return progress_of(list(_runs().filter(state__in=UNFINISHED).order_by("pk")[:LISTED]))


def progress_of(runs: Sequence[Run]) -> list[Progress]:
    """Count the shards of several runs in one query."""
    counted = _shards(run.pk for run in runs) if runs else {}
    contexts, latents = RunShard.Kind.CONTEXTS, RunShard.Kind.LATENTS
    none = Shards()
    return [Progress(r, counted.get((r.pk, contexts), none), counted.get((r.pk, latents), none)) for r in runs]


def _runs() -> QuerySet[Run]:
    return Run.objects.select_related("sae__lm", "dataset").defer("sae__lm__vocabulary", "summary")


def _shards(runs: Iterable[int]) -> dict[tuple[int, str], Shards]:
    is_done, claimed = Q(state=RunShard.State.DONE), Q(state=RunShard.State.CLAIMED)
    size = F("hi") - F("lo")
    grouped = RunShard.objects.filter(run_id__in=list(runs)).values_list("run_id", "kind")
    rows: Iterable[tuple[Any, ...]] = grouped.annotate(
        total=Count("pk"),
        done=Count("pk", filter=is_done),
        items=Sum(size),
        items_done=Sum(size, filter=is_done),
        claimed=Count("pk", filter=claimed),
        working=Sum("progress", filter=claimed),
        last=Max("done_at"),
    )
    return {
        (run, kind): Shards(total, done, items or 0, in_done or 0, held, working or 0, last)
        for run, kind, total, done, items, in_done, held, working, last in rows
    }


def _counts(shards: Shards) -> dict[str, int]:
    return {"done": shards.done, "total": shards.total}


def _between(a: datetime, b: datetime) -> float:
    return max(0.0, (b - a).total_seconds())


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
