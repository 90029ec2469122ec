"""Child processes that end with their parent, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
LOG_LIMIT = 10_000_000  # bytes; a larger log is set aside as .old when its process starts
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def end_with_parent(death_signal: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent is gone; Linux only."""
    if _libc is None:
        return
    _libc.prctl(PR_SET_PDEATHSIG, death_signal)
    if parent is not None and os.getppid() != parent:
        os._exit(1)  # the parent died between fork and prctl


def tied(death_signal: int) -> Callable[[], None]:
    """A preexec_fn that ties the child to this process and undoes a shell's `&`, which ignores SIGINT."""
    parent = os.getpid()

    def before_exec() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        end_with_parent(death_signal, parent)

    return before_exec


def spawn(
    command: Sequence[str | Path],
    log: Path,
    death_signal: int,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    user: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own, so that the terminal's Ctrl-C reaches only the launcher."""
    if log.exists() and log.stat().st_size > LOG_LIMIT:
        log.replace(log.with_suffix(".old"))
    with log.open("ab") as output:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=tied(death_signal),
            start_new_session=True,
            env=env,
            cwd=cwd,
            user=user,
            extra_groups=None if user is None else [],
        )


def stop(children: Sequence[subprocess.Popen[bytes]], *steps: tuple[signal.Signals, float]) -> None:
    """Send each signal in turn to those that still run and wait its seconds; SIGKILL is the last."""
    for step, seconds in steps:
        deadline = time.monotonic() + seconds
        for child in children:
            child.send_signal(step)  # nothing to one that has ended
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            time.sleep(0.02)
    for child in children:
        child.kill()
        child.wait()


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, indented for a terminal."""
    if not log.exists():
        return ""
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 20_000))
        text = handle.read().decode(errors="replace")
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])
