"""PostgreSQL and Redis as children: they start, keep their data, and never outlive their parent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from sae_backend import embedded
from sae_backend.embedded import Account, AlreadyHeld, Servers, ServersError, run_directory

ROOT = Path(embedded.__file__).resolve().parent.parent
HOLD = """
import sys, time; from pathlib import Path; from sae_backend.embedded import Servers
with Servers(Path(sys.argv[1]), throwaway=sys.argv[2] == "quick"):
    print("up", flush=True); time.sleep(600)
"""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose parents anybody may enter, as PostgreSQL's may have to."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.name.startswith(("pytest-", "popen-", "test_")):
            directory.chmod(0o755)
    yield tmp_path / "var"
    for process in servers_in(tmp_path / "var"):
        with suppress(psutil.NoSuchProcess):  # it may be ending just now
            process.kill()


def servers_in(data: Path) -> list[psutil.Process]:
    """The living servers whose working directory lies in `data`."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        inside = (process.info["cwd"] or "").startswith(f"{data}/")
        if inside and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def in_another_process(data: Path, mode: str = "quick", *prefix: str) -> subprocess.Popen[str]:
    """A process that holds the servers of `data` until it is killed."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLD, str(data), mode], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def gone_within(data: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while servers_in(data) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not servers_in(data)


def connect(servers: Servers) -> psycopg.Connection:
    return psycopg.connect(f"host={servers.run} user=postgres dbname=latents", autocommit=True)


def write(servers: Servers, word: str) -> None:
    with connect(servers) as db, redis.Redis.from_url(servers.redis_url) as client:
        db.execute("create table if not exists words (word text)")
        db.execute("insert into words values (%s)", [word])
        client.rpush("words", word)


def read(servers: Servers) -> tuple[list[str], list[str]]:
    with connect(servers) as db, redis.Redis.from_url(servers.redis_url) as client:
        rows = [row[0] for row in db.execute("select word from words").fetchall()]
        return rows, [word.decode() for word in client.lrange("words", 0, -1)]


def test_a_second_start_finds_the_data_of_the_first(data: Path) -> None:
    with Servers(data) as servers:
        write(servers, "first")
    assert servers_in(data) == []
    with Servers(data) as servers:
        assert read(servers) == (["first"], ["first"])


def test_nothing_is_left_after_an_orderly_stop_but_the_data(data: Path) -> None:
    with Servers(data, throwaway=True) as servers:
        assert servers.run.exists()
    assert not servers.run.exists()
    assert sorted(path.name for path in data.iterdir()) == ["log", "pg", "redis", "servers.lock"]


def test_a_killed_parent_takes_both_servers_along(data: Path) -> None:
    holder = in_another_process(data)
    assert {process.name() for process in servers_in(data)} == {"postgres", "redis-server"}
    holder.kill()
    holder.wait()
    assert gone_within(data, 10)


def test_data_outlives_a_killed_parent(data: Path) -> None:
    holder = in_another_process(data, "kept")
    write(Servers(data), "kept")
    holder.kill()
    holder.wait()
    with Servers(data) as servers:
        assert read(servers) == (["kept"], ["kept"])


def test_servers_that_outlived_their_launcher_are_ended_before_the_next_start(data: Path) -> None:
    with Servers(data, throwaway=True) as servers:
        children = dict(servers._children)
        servers._lock.close()  # type: ignore[union-attr]  # as the kernel does where nothing ties children to parents
        with Servers(data, throwaway=True) as second:
            assert all(child.wait(1) == 0 for child in children.values())
            write(second, "second")


def test_a_pid_file_whose_number_is_another_process_is_no_obstacle(data: Path) -> None:
    with Servers(data, throwaway=True):
        pass
    (data / "pg" / "postmaster.pid").write_text(f"{os.getppid()}\n{data / 'pg'}\n0\n5432\n\n\n")
    with Servers(data, throwaway=True) as servers:
        write(servers, "up")


def test_an_initdb_that_was_killed_half_way_is_done_again(data: Path) -> None:
    (data / "pg.new").mkdir(parents=True)
    (data / "pg.new" / "PG_VERSION").write_text("18\n")
    with Servers(data, throwaway=True) as servers:
        write(servers, "up")


def test_a_directory_that_a_live_process_holds_is_refused_by_name_and_number(data: Path) -> None:
    holder = in_another_process(data)
    with pytest.raises(AlreadyHeld, match=f"Process {holder.pid} already runs the servers of {data}"):
        Servers(data).start()
    assert holder.poll() is None
    holder.terminate()
    holder.wait()


def test_two_data_directories_do_not_collide(data: Path) -> None:
    with Servers(data / "one", throwaway=True) as one, Servers(data / "two", throwaway=True) as two:
        write(one, "one")
        write(two, "two")
        assert read(one) == (["one"], ["one"])
        assert read(two) == (["two"], ["two"])


def test_only_the_owner_enters_the_directory_of_sockets(data: Path) -> None:
    with Servers(data, throwaway=True) as servers:
        assert stat.S_IMODE(servers.run.stat().st_mode) == 0o700
        assert len(str(servers.run / ".s.PGSQL.5432")) < 100


def test_a_directory_of_sockets_that_is_a_link_is_refused(data: Path) -> None:
    run = run_directory(data)
    run.symlink_to("/tmp")
    try:
        with pytest.raises(ServersError, match="is not ours"):
            Servers(data).start()
    finally:
        run.unlink()


def test_a_server_that_ends_on_its_own_is_named(data: Path) -> None:
    with Servers(data, throwaway=True) as servers:
        assert servers.dead() is None
        next(process for process in servers_in(data) if process.name() == "redis-server").kill()
        assert gone_within(data / "redis", 5)
        assert servers.dead() == "redis"


def test_a_server_that_does_not_start_shows_the_end_of_its_log(data: Path) -> None:
    with Servers(data, throwaway=True):
        pass
    (data / "pg" / "postgresql.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(ServersError, match=r"postgres did not start(.|\n)*no_such_setting"):
        Servers(data, throwaway=True).start()
    assert servers_in(data) == []


def test_a_data_directory_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServersError, match="set VAR_DIR to a directory of yours"):
        Servers(tmp_path / "file" / "var").start()


@root_only
def test_root_without_user_namespaces_runs_postgres_as_nobody(data: Path) -> None:
    import pwd

    nobody = pwd.getpwnam("nobody").pw_uid
    for word in ("first", "second"):
        with Servers(data, throwaway=True, account=Account(nobody, user=nobody)) as servers:
            postgres = next(process for process in servers_in(data) if process.name() == "postgres")
            assert postgres.uids().real == nobody
            write(servers, word)
    assert embedded.account_for(data / "pg").user == nobody  # and stays so


@root_only
def test_an_ordinary_user_needs_nothing_of_roots(data: Path) -> None:
    data.parent.chmod(0o777)
    holder = in_another_process(data, "quick", *embedded.UNSHARE)
    assert {process.name() for process in servers_in(data)} == {"postgres", "redis-server"}
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert gone_within(data, 10)
