"""PostgreSQL and Redis of one test module's own, as durable as in production, to be stopped, killed and filled up."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from django.core.management import call_command
from django.db import connection

from sae_backend import processes
from sae_backend.embedded import Account, Servers, account_for

SECONDS = 120.0


@contextmanager
def servers(prefix: Sequence[str] = (), data: Path | None = None) -> Iterator[Servers]:
    """Servers of an empty data directory; the prefix is a command that PostgreSQL's is appended to."""
    directory = Path(tempfile.mkdtemp(prefix="latents-own-", dir="/tmp"))
    directory.chmod(0o755)  # PostgreSQL may run as nobody
    data = data or directory / "var"
    account = Account(account_for(data / "pg").uid, prefix=tuple(prefix)) if prefix else None
    try:
        with Servers(data, account=account) as up, database_of(up):
            call_command("migrate", verbosity=0)
            yield up
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def database_of(servers: Servers) -> Iterator[None]:
    """Have this process use the servers' database instead of the tests'."""
    before = dict(connection.settings_dict)
    given = {"NAME": "latents", "USER": "postgres", "PASSWORD": "", "HOST": "", "PORT": ""}
    leave()
    connection.settings_dict.update({**given, "OPTIONS": {**before["OPTIONS"], "host": str(servers.run)}})
    try:
        yield
    finally:
        leave()
        connection.settings_dict.update(before)


def leave() -> None:
    connection.close()
    connection.close_pool()


def restart(servers: Servers, name: str, how: signal.Signals) -> None:
    """Stop a server by a signal, wait until nothing of it is left, and start it again."""
    end(servers, name, how)
    begin(servers, name)


def end(servers: Servers, name: str, how: signal.Signals) -> None:
    """SIGINT is PostgreSQL's fast shutdown, SIGTERM Redis' orderly one, and SIGKILL leaves either no time."""
    processes.stop([servers._children[name]], (how, SECONDS))
    wait_until_gone({"postgres": servers.pg, "redis": servers.redis}[name])
    leave()


def begin(servers: Servers, name: str) -> None:
    if name == "postgres":
        servers._start_postgres()
        servers._wait(name, servers._make_database)
    else:
        servers._start_redis()
        servers._wait(name, servers._ping_redis)


def wait_until_gone(directory: Path) -> None:
    """A killed postmaster's backends end on their own; the next would not start before."""
    deadline = time.monotonic() + SECONDS
    while any(is_in(process, directory) for process in psutil.process_iter()):
        assert time.monotonic() < deadline, f"something still runs in {directory}"
        time.sleep(0.02)


def is_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.cwd() == str(directory) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
