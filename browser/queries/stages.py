"""The stages of a run, as its pages and its JSON show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sae_backend.models import Run

State = Run.State


@dataclass(frozen=True)
class Part:
    """A stage as every run has it: from when to when it lasts, and what it counts."""

    name: str
    means: str
    state: str
    begun: str
    ended: str
    unit: str = ""


PARTS = (
    Part("Queue", "The run waits until a worker takes its first shard", State.QUEUED, "created_at", "started_at"),
    Part(
        "Contexts",
        "The language model reads every context once; all latents are encoded and counted",
        State.COMPUTING, "started_at", "computed_at", "tokens",
    ),
    Part(
        "Latents",
        "Statistics, examples, logit effects and decoder neighbours are worked out and written",
        State.LOADING, "computed_at", "loaded_at", "latents",
    ),
    Part(
        "Publish",
        "Tables are indexed and checked, then the SAE's pages show this run",
        State.SEALED, "loaded_at", "live_at", "indexes",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Shards:
    """How many of a run's shards of one kind there are, and what is in those that are done."""

    total: int = 0
    done: int = 0
    items: int = 0  # contexts or latents in all
    items_done: int = 0  # of them in shards that are done
    working: int = 0  # done so far inside claims, in tokens or latents
    again: int = 0  # shards that needed more than one attempt


@dataclass(frozen=True)
class Queue:
    """What stands before a run that waits."""

    place: int = 1  # 1 is next
    seconds: float | None = None  # until it may begin
    moving: bool = False  # another run has given a sign of late


@dataclass(frozen=True)
class Stage:
    """A part of a run that has its own progress."""

    part: Part
    state: str  # done, current, todo, failed, cancelled
    done: int = 0
    total: int = 0
    seconds: float | None = None  # taken so far, or in all
    rate: float | None = None  # items a second: of late while it is current, the mean afterwards
    left: float | None = None  # seconds, about; of a stage that has not begun, all it may take

    @property
    def name(self) -> str:
        return self.part.name

    @property
    def unit(self) -> str:
        return self.part.unit

    @property
    def share(self) -> float:
        """Per cent done."""
        return 100.0 if self.state == "done" else 100 * self.done / self.total if self.total else 0.0

    @property
    def bar(self) -> str:
        """The class of its progress bar."""
        return {"done": "done", "failed": "fail", "cancelled": "idle"}.get(self.state, "")

    def as_json(self) -> dict[str, Any]:
        counts = {"done": self.done, "total": self.total} if self.total else {"done": None, "total": None}
        return {
            "name": self.name, "state": self.state, "unit": self.unit or None, **counts,
            "rate": self.rate, "seconds": self.seconds, "seconds_left": self.left,
        }  # fmt: skip
