"""A pytest plugin: a throwaway PostgreSQL and Redis for the session, up before Django reads its settings."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Set the environment that settings.py reads; each worker of xdist has its own Redis database."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("LIST_TIMEOUT_MS", "120000")  # a list that waits for a machine that does is not too long
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        _use_own_redis(int(worker.removeprefix("gw")) + 1)
    elif not _given() and not _core_only(early_config):
        _start(early_config)


def _given() -> bool:
    return bool(os.environ.get("DATABASE_URL") and os.environ.get("REDIS_URL"))


def _core_only(config: pytest.Config) -> bool:
    """Whether every path asked for lies in tests/core, which needs no server."""
    paths = config.known_args_namespace.file_or_dir
    core = ROOT / "tests" / "core"
    return bool(paths) and all(Path(path.split("::")[0]).resolve().is_relative_to(core) for path in paths)


def _start(config: pytest.Config) -> None:
    from sae_backend.embedded import Servers

    directory = Path(tempfile.mkdtemp(prefix="latents-tests-", dir="/tmp"))
    directory.chmod(0o755)  # PostgreSQL may run as nobody
    os.environ["XDG_RUNTIME_DIR"] = str(directory)  # sockets of servers that tests kill go with it
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # CI's time limit cleans up like Ctrl-C
    servers = Servers(directory, throwaway=True)
    config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
    config.add_cleanup(servers.stop)
    servers.start()
    os.environ.update(servers.environment(), VAR_DIR=str(directory), SECRET_KEY="only for tests")


def _use_own_redis(number: int) -> None:
    before, _, _ = os.environ["REDIS_URL"].partition("?db=")
    if before.startswith("unix://"):
        os.environ["REDIS_URL"] = f"{before}?db={number}"
