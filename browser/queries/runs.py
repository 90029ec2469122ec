"""Runs as jobs: the list of them and the page of one, with the progress of each."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from django.db import connection
from django.db.models import Count, F, Q, QuerySet, Sum
from django.urls import reverse
from django.utils import timezone

from browser import remedies, report
from browser.errors import Link, NotFound, SaeDeleted
from browser.queries import comparing, jump, pace, stall, workers
from browser.queries.comparing import Comparing
from browser.queries.pace import PUBLISHED
from browser.queries.progress import Progress
from browser.queries.stages import Queue, Shards
from browser.queries.workers import WorkerLine
from sae_backend import store
from sae_backend.comparisons import OPEN
from sae_backend.models import RESUMABLE, UNFINISHED, Comparison, DeletedSae, LogLine, Run, RunShard, SaeImport

LISTED = 50  # finished runs on the list of jobs
WAITING = 200  # unfinished runs on it
LOG_LINES = 200
SHOWN, ENDED = 8, 3  # unfinished and finished runs beside a job
INDEXES = len(store.SORTABLE) + 3  # of both tables of a run: also the dead and two keys


@dataclass(frozen=True)
class RunPage:
    """A job's page, and with _run_live.html the part of it that changes."""

    progress: Progress
    log: list[LogLine]
    why: str  # it does not move, and what to do; "" while it moves
    brought: SaeImport | None = None  # where it failed: the import that asked for it, with the choices that were made
    among: list[Progress] | None = None  # unfinished runs, where they had to be looked at
    may_steer: bool = False  # whoever looks at it may cancel and resume it
    may_change: bool = False  # and compute its SAE otherwise, and drop its runs
    template: ClassVar[str] = "browser/run_detail.html"

    @property
    def remedies(self) -> list[Link]:
        run = self.progress.run
        return remedies.of_run(run, self.brought, self.may_change) if run.state == Run.State.FAILED else []

    @cached_property
    def others(self) -> Others:
        return others(self.among)

    @property
    def figures(self) -> list[report.Figure]:
        return report.figures(self.progress.run.summary) if self.progress.published else []

    def as_json(self) -> dict[str, Any]:
        log = [{"at": line.at.isoformat(), "level": line.level, "text": line.text} for line in self.log]
        return {**self.progress.as_json(), "why": self.why or None, "may_steer": self.may_steer, "log": log}


@dataclass(frozen=True)
class Others:
    """What else is computed, waits, or has ended of late, and who works: _others.html."""

    unfinished: list[Progress]
    finished: list[Progress]
    workers: list[WorkerLine]

    @property
    def running(self) -> int:
        return sum(p.run.state != Run.State.QUEUED for p in self.unfinished)

    @property
    def waiting(self) -> int:
        return len(self.unfinished) - self.running

    @property
    def shown(self) -> list[Progress]:
        return [*self.unfinished[:SHOWN], *self.finished]


@dataclass(frozen=True)
class RunSteering:
    """Asks whether to cancel or resume a job, or says who may."""

    page: RunPage
    action: str  # cancel or resume
    template: ClassVar[str] = "browser/run_steer.html"
    refusal: ClassVar[str] = (
        "Cancelling and resuming a job is for who asked for it, who brought in its SAE, and staff. "
        "Log in as one of them, or ask whoever runs this site."
    )

    @property
    def possible(self) -> bool:
        """Whether the job is in a state that the action changes."""
        progress = self.page.progress
        return progress.unfinished if self.action == "cancel" else progress.over or progress.stalled


@dataclass(frozen=True)
class Choice:
    """Which jobs to list: runs that are over, imports and comparisons in these states; and what waits or computes."""

    title: str
    runs: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    comparisons: tuple[str, ...] = ()
    unfinished: bool = False


Import, Compared = SaeImport.State, Comparison.State
ON_THEIR_WAY = (Import.RECEIVING, Import.CHECKING, Import.WAITING, Import.QUEUED, Import.RUNNING)
OVER = (*PUBLISHED, *RESUMABLE)
CHOICES = {
    "": Choice("All", OVER, (*ON_THEIR_WAY, Import.FAILED), (*OPEN, Compared.FAILED, Compared.DONE), True),
    "open": Choice("Under way", (), ON_THEIR_WAY, OPEN, True),
    "done": Choice("Done", PUBLISHED, (), (Compared.DONE,)),
    "failed": Choice("Failed", (Run.State.FAILED,), (Import.FAILED,), (Compared.FAILED,)),
    "cancelled": Choice("Cancelled", (Run.State.CANCELLED,), (Import.CANCELLED,), (Compared.CANCELLED,)),
}


@dataclass(frozen=True)
class RunList:
    """The list of jobs; with _runs_live.html the part that changes."""

    unfinished: list[Progress]
    finished: list[Progress]
    imports: list[SaeImport]
    comparisons: list[Comparing]
    workers: list[WorkerLine]
    state: str = ""  # a key of CHOICES
    staff: bool = False  # who may know where things lie on the server
    template: ClassVar[str] = "browser/run_list.html"

    @property
    def changing(self) -> bool:
        return bool(self.unfinished) or any(i.state in ON_THEIR_WAY for i in self.imports) or self.comparing

    @property
    def comparing(self) -> bool:
        return any(each.changing for each in self.comparisons)

    @property
    def tabs(self) -> list[tuple[str, str, bool]]:
        """Query, title and whether it is shown, of each choice."""
        return [(f"?state={key}" if key else "", choice.title, key == self.state) for key, choice in CHOICES.items()]

    @property
    def choice(self) -> Choice:
        return CHOICES[self.state]


def page(pk: int) -> RunPage:
    """One job: the run, its progress and its last log lines."""
    run = _runs().defer(None).defer("sae__lm__vocabulary").filter(pk=pk).first()
    if run is None:
        if left := DeletedSae.objects.filter(runs__contains=[pk]).first():
            raise SaeDeleted(left)
        every = Link("All jobs", reverse("run_list"), icon="list")
        raise NotFound(f"There is no job {pk}", "Jobs are numbered in the order in which they were asked for.", [every])
    log = list(run.log.order_by("-pk")[:LOG_LINES])[::-1]
    among = unfinished() if run.state in UNFINISHED else None  # what stands before it says when it begins
    progress = next((p for p in among or [] if p.run.pk == pk), None) or progress_of([run])[0]
    brought = run.imports.first() if run.state == Run.State.FAILED else None
    return RunPage(progress, log, stall.why(progress) if progress.stalled else "", brought, among)


def whole_log(pk: int) -> str:
    """Every line of a job's log, each with its moment in UTC and its level."""
    job = page(pk).progress.run
    return "".join(f"{line.at:%Y-%m-%d %H:%M:%S} {line.level} {line.text}\n" for line in job.log.order_by("pk"))


def listing(state: str = "", staff: bool = False) -> RunList:
    """Unfinished jobs, the latest finished ones, imports that are not done, and comparisons; or only some of them."""
    state = state if state in CHOICES else ""
    wanted = CHOICES[state]
    finished = list(_runs().filter(state__in=wanted.runs).order_by("-pk")[:LISTED])
    imports = SaeImport.objects.filter(state__in=wanted.imports).select_related("lm", "owner").defer("lm__vocabulary")
    waiting = unfinished() if wanted.unfinished else []
    working = workers.listing() if wanted.unfinished else []
    brought, pairs = list(imports.order_by("-pk")[:LISTED]), comparing.listing(wanted.comparisons)
    return RunList(waiting, progress_of(finished), brought, pairs, working, state, staff)


def others(among: list[Progress] | None = None) -> Others:
    """The head of the queue, the runs that ended last, and the workers."""
    ended = list(_runs().filter(state__in=OVER).order_by("-pk")[:ENDED])
    return Others(unfinished() if among is None else among, progress_of(ended), workers.listing())


def import_json(row: SaeImport) -> dict[str, Any]:
    """An import in the list, for programs."""
    said = {"id": row.pk, "name": row.name, "state": row.state, "error": row.public_error or None}
    asked = row.owner.get_username() if row.owner else None
    return {**said, "asked_by": asked, "url": reverse("import_detail", args=[row.key])}


def unfinished() -> list[Progress]:
    """Runs that wait or compute, the oldest first."""
    found = progress_of(list(_runs().filter(state__in=UNFINISHED).order_by("pk")[:WAITING]))
    return _queued(found)


def progress_of(runs: Sequence[Run]) -> list[Progress]:
    """Count the shards of several runs in one query, and measure those that are not over in two or three."""
    if not runs:
        return []
    now, contexts, latents = timezone.now(), *_counts(run.pk for run in runs)
    open_ = [run for run in runs if run.state in UNFINISHED]
    at_work = pace.shards_at_work((run.pk for run in open_), now) if open_ else {}
    costs, indexes = pace.of_earlier_runs(open_), _indexes(open_)
    return [
        Progress(
            run, contexts.get(run.pk, Shards()), latents.get(run.pk, Shards()), at_work.get(run.pk, []),
            costs.get(run.pk), indexes=indexes.get(run.pk, (0, 0)), now=now,
        )
        for run in runs
    ]  # fmt: skip


def _queued(found: Sequence[Progress]) -> list[Progress]:
    """Tell each run that waits what stands before it: those that have begun, and those asked for earlier."""
    begun = [p for p in found if p.run.state != Run.State.QUEUED]
    seconds: float | None = 0.0
    for progress in begun:
        seconds = None if seconds is None or progress.left is None else seconds + progress.left
    moving = any(not progress.stalled for progress in begun)
    out = [replace(p, queue=Queue(moving=any(not q.stalled for q in begun if q is not p))) for p in begun]
    for place, progress in enumerate((p for p in found if p.run.state == Run.State.QUEUED), start=1):
        out.append(replace(progress, queue=Queue(place, seconds if begun or place > 1 else None, moving)))
        own = out[-1].left
        seconds = own  # until the next one begins
    return out


def _runs() -> QuerySet[Run]:
    return Run.objects.select_related("sae__lm", "dataset", "owner").defer("sae__lm__vocabulary", "summary")


def _counts(runs: Iterable[int]) -> tuple[dict[int, Shards], dict[int, Shards]]:
    """Shards of contexts and of latents, by run."""
    is_done, claimed = Q(state=RunShard.State.DONE), Q(state=RunShard.State.CLAIMED)
    size = F("hi") - F("lo")
    grouped = RunShard.objects.filter(run_id__in=list(runs)).values_list("run_id", "kind")
    rows: Iterable[tuple[Any, ...]] = grouped.annotate(
        total=Count("pk"),
        done=Count("pk", filter=is_done),
        items=Sum(size),
        items_done=Sum(size, filter=is_done),
        working=Sum("progress", filter=claimed),
        again=Count("pk", filter=Q(attempts__gt=1)),
    )
    found: dict[str, dict[int, Shards]] = {RunShard.Kind.CONTEXTS: {}, RunShard.Kind.LATENTS: {}}
    for run, kind, total, done, items, in_done, working, again in rows:
        found[kind][run] = Shards(total, done, items or 0, in_done or 0, working or 0, again)
    return found[RunShard.Kind.CONTEXTS], found[RunShard.Kind.LATENTS]


def _indexes(runs: Iterable[Run]) -> dict[int, tuple[int, int]]:
    """Indexes made of those wanted, for each run that is being sealed."""
    sealed = [run.pk for run in runs if run.state == Run.State.SEALED]
    if not sealed:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "select r.id, count(*) from sae_backend_run r join pg_indexes i"
            " on i.tablename in ('latent_r' || r.id, 'latent_page_r' || r.id) where r.id = any(%s) group by r.id",
            [sealed],
        )
        made = dict(cursor.fetchall())
    return {pk: (min(made.get(pk, 0), INDEXES), INDEXES) for pk in sealed}


def named(word: str, states: Collection[str]) -> Run:
    """The run that a job's number names, or the latest in one of these states (else the latest) of an SAE."""
    runs = _runs().order_by("-pk")
    found = runs.filter(pk=int(word)).first() if word.isdecimal() and len(word) < 10 else None
    if found is None:
        mine = list(runs.filter(sae=jump.sae_called(word)))
        found = next((run for run in mine if run.state in states), mine[0] if mine else None)
    if found is None:
        raise NotFound(f"{word} has no run", "Compute one with import_sae and --dataset.")
    return found
