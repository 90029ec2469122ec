"""A peer's own virtual environment, beside ours, and one job run in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.peers.cases import NAMES
from bench.peers.job import Job
from sae_backend.processes import tail

ROOT = Path(__file__).parents[2]


class Unmeasured(Exception):
    """A peer that gave no figures, with a sentence that says why."""


def measure(peer: str, job: Job) -> dict[str, Any]:
    """The figures of one job, from the peer's interpreter."""
    home = folder(peer)
    if not (home / ".installed").exists():
        raise Unmeasured(f"{NAMES[peer]} is not measured: {home} does not have it; pip's words stand above")
    command = [str(home / "bin/python"), "-m", f"bench.peers.{peer}", str(job.write())]
    log = job.folder / "log"
    with log.open("wb") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=output, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise Unmeasured(f"{NAMES[peer]} is not measured: it ended with status {done.returncode}\n{tail(log)}")
    return job.result()


def folder(peer: str) -> Path:
    """Beside our own environment, as the Makefile makes it."""
    return Path(f"{sys.prefix}-peers-{peer}")
