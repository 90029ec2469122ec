"""What one measurement of a peer is given and gives back, as files; imported in the peers' environments too."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

BATCH = 128  # latents that SAEDashboard takes at a time, its default
PRE_ACTS = 1 << 22  # in one forward: fewer and more were both slower for both peers, who keep them dense


@dataclass(frozen=True)
class Job:
    lm: Path
    #: Folder of the language model, as Hugging Face writes it.
    sae: Path
    #: Folder of the SAE, as SAELens writes it; its decoder rows have length 1.
    tokens: Path
    #: .npy of contexts, BOS included.
    reference: Path
    #: .npz of our activations on the first contexts, in float32.
    folder: Path
    #: Empty, for what the peer writes.
    dtypes: list[str]
    batches: int
    #: Batches of latents to measure where a peer takes batches; 0 for all.
    at_once: int = 0
    #: Contexts in one forward of a peer; 0 for what we found fastest.

    def write(self) -> Path:
        path = self.folder / "job.json"
        path.write_text(json.dumps(asdict(self), default=str))
        return path

    @classmethod
    def read(cls, path: str) -> Job:
        values: dict[str, Any] = json.loads(Path(path).read_text())
        paths = {f.name for f in fields(cls) if f.type == "Path"}
        return cls(**values | {name: Path(values[name]) for name in paths})

    def done(self, figures: dict[str, Any]) -> None:
        (self.folder / "result.json").write_text(json.dumps(figures))

    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "result.json").read_text())


def cpu() -> float:
    """CPU seconds, user and system, of all threads of this process and of its ended children."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def contexts_at_once(job: Job, ctx_len: int, d_sae: int) -> int:
    """Contexts in one forward of a peer."""
    return job.at_once or max(1, PRE_ACTS // (ctx_len * d_sae))


def scaled(spent: list[float], batches: int) -> float:
    """Seconds for all batches of latents: the first, which also runs the language model, and the mean of the others."""
    first, *later = spent
    if len(spent) == batches:
        return sum(spent)
    if not later:
        raise ValueError("scaling needs two batches or more: the first one also runs the language model")
    return first + (batches - 1) * sum(later) / len(later)
