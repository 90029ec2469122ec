"""A process that forks others to be killed: each is there at once, with Django imported and no connection open.

python -m tests.backend.nursery reads lines, `load RUN WORKER SLOW` or `publish RUN`, and answers with a child's pid.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The test's end: `born` starts a child, `ended` waits for it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.backend.nursery"],
            env=environment, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def born(self, *words: object) -> int:
        return int(self._ask(*words))

    def kill(self, pid: int) -> bool:
        """Send SIGKILL; whether the child was still at work."""
        os.kill(pid, signal.SIGKILL)
        return self.ended(pid) == -signal.SIGKILL

    def ended(self, pid: int) -> int:
        """Wait for the child; its exit code."""
        return int(self._ask("wait", pid))

    def close(self) -> None:
        self._process.communicate()

    def _ask(self, *words: object) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._process.stdout.readline()


def _serve() -> None:
    import django

    django.setup()
    importlib.import_module("tests.backend.synthetic")  # before the first child, not in each

    for line in sys.stdin:
        name, *words = line.split()
        if name == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1])
        elif (answer := os.fork()) == 0:
            os._exit(_child(name, words))
        print(answer, flush=True)


def called(pid: int) -> str:
    """A child's connections, for PostgreSQL."""
    return f"child {pid}"


def _child(name: str, words: list[str]) -> int:
    from sae_backend.models import Run
    from tests.backend import synthetic

    os.environ["PGAPPNAME"] = called(os.getpid())
    run = Run.objects.get(pk=int(words[0]))
    if name == "load":
        synthetic.load(run, words[1], slow=words[2] == "True")
    else:
        assert synthetic.publish_alone(run.pk)
    return 0


if __name__ == "__main__":
    _serve()
