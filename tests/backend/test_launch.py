"""The launcher: everything comes up with one command and goes with it; and the containers' commands run."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from sae_backend.launch import LASTING_SECONDS, RESTARTS, ROOT, Child, Launcher, LaunchError

UP_SECONDS = 240.0  # 5 on an idle machine
USERS = "from django.contrib.auth import get_user_model; print(*get_user_model().objects.all())"
GIVEN = ("DATABASE_URL", "REDIS_URL", "VAR_DIR", "PORT", "HOST")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(var: Path, **more: str) -> dict[str, str]:
    """The environment of an ordinary terminal, without the servers of these tests."""
    inherited = {name: value for name, value in os.environ.items() if name not in GIVEN}
    return {**inherited, "VAR_DIR": str(var), **more}


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=UP_SECONDS) as response:
            return int(response.status)
    except OSError:
        return 0


def wait_for(condition: Callable[[], object], seconds: float = UP_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


class Site:
    """A launcher in a process of its own, on a free port."""

    def __init__(self, var: Path, *prefix: str) -> None:
        self.port, self.var = free_port(), var
        self.output = var.parent / f"terminal-{self.port}"
        with self.output.open("wb") as terminal:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "sae_backend.launch", "site"],
                env=environment(var, PORT=str(self.port)),
                cwd=ROOT,
                stdout=terminal,
                stderr=subprocess.STDOUT,
            )

    def up(self) -> None:
        assert wait_for(self.shown), self.terminal()
        assert self.process.poll() is None, self.terminal()
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def shown(self) -> bool:
        return "The site is at" in self.terminal() or self.process.poll() is not None

    def terminal(self) -> str:
        return self.output.read_text()

    def left(self) -> list[str]:
        return [command for each in self.family if (command := command_of(each))]

    def child(self, word: str) -> psutil.Process:
        return next(each for each in self.family if word in command_of(each))

    def revived(self, word: str, before: psutil.Process) -> bool:
        """Whether there is another in place of a child that has ended."""
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return any(word in command_of(each) and each.pid != before.pid for each in self.family)


def command_of(process: psutil.Process) -> str:
    """A process's command line; empty once it has ended, perhaps while it is asked."""
    with suppress(psutil.NoSuchProcess):
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return " ".join(process.cmdline())
    return ""


@contextmanager
def running(var: Path, *prefix: str) -> Iterator[Site]:
    site = Site(var, *prefix)
    try:
        site.up()
        yield site
    finally:
        if site.process.poll() is None:
            site.process.terminate()
            site.process.wait(UP_SECONDS)


def manage(var: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sae_backend.launch", "command", *arguments]
    env = environment(var)
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("site") / "var"


@pytest.fixture(scope="module")
def site(var: Path) -> Iterator[Site]:
    with running(var) as site:
        yield site


def test_one_command_brings_up_pages_servers_and_workers(site: Site) -> None:
    assert status(f"http://127.0.0.1:{site.port}/healthz") == 200
    assert f"http://127.0.0.1:{site.port}/" in site.terminal()
    for word in ("postgres -D", "redis-server", "gunicorn", "--queues=compute", "--queues=interactive"):
        assert site.child(word).is_running()


def test_a_management_command_uses_the_servers_of_a_site_that_runs(site: Site, var: Path) -> None:
    done = manage(var, "shell", "--verbosity=0", "-c", USERS)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_a_worker_that_is_killed_is_reported_and_started_again(site: Site) -> None:
    before = site.child("--queues=interactive")
    before.kill()
    assert wait_for(lambda: "interactive has ended (code -9)" in site.terminal())
    assert wait_for(lambda: site.revived("--queues=interactive", before))


def test_a_taken_port_is_a_sentence_and_starts_nothing(site: Site, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sae_backend.launch", "site"]
    env = environment(tmp_path / "other", PORT=str(site.port))
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(rf"Port {site.port} of 127.0.0.1 cannot be used .*choose another.*\n", done.stderr)
    assert not (tmp_path / "other" / "pg").exists()


def test_a_second_site_of_the_same_data_is_refused(site: Site, var: Path) -> None:
    second = Site(var)
    assert second.process.wait(UP_SECONDS) == 1
    assert f"Process {site.process.pid} already runs the servers of {var}" in second.terminal()


def test_ctrl_c_stops_everything_within_seconds_and_the_data_is_there_again(tmp_path: Path) -> None:
    with running(tmp_path / "var") as site:
        manage(site.var, "createsuperuser", "--no-input", "--username=keeper", "--email=keeper@localhost")
        began = time.monotonic()
        site.process.send_signal(signal.SIGINT)
        assert site.process.wait(UP_SECONDS) == 0
        assert time.monotonic() - began < 60
        assert wait_for(lambda: site.left() == []), site.left()
    assert manage(site.var, "shell", "--verbosity=0", "-c", USERS).stdout == "keeper\n"


def test_a_killed_launcher_leaves_no_process_behind(tmp_path: Path) -> None:
    with running(tmp_path / "var") as site:
        site.process.kill()
        site.process.wait()
        assert wait_for(lambda: site.left() == []), site.left()


def test_a_launcher_that_is_asked_to_stops_with_its_parent(tmp_path: Path) -> None:
    launch_it = f"{sys.executable} -m sae_backend.launch --stop-with-parent"
    script = f"{launch_it} command shell -c 'import time; time.sleep(600)' & echo $!; wait"
    env = environment(tmp_path / "var")
    shell = subprocess.Popen(["bash", "-c", script], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert shell.stdout is not None
    launcher = psutil.Process(int(shell.stdout.readline()))
    assert wait_for((tmp_path / "var" / "servers.lock").exists)
    shell.kill()
    assert wait_for(lambda: not launcher.is_running() or launcher.status() == psutil.STATUS_ZOMBIE)


def test_a_failing_preparation_shows_the_end_of_its_log(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path, environment=environment(tmp_path, DJANGO_SETTINGS_MODULE="nowhere"))
    launcher.logs.mkdir()
    with pytest.raises(LaunchError, match=r"manage.py migrate failed(.|\n)*No module named 'nowhere'"):
        launcher.prepare("migrate")


def test_a_child_that_keeps_ending_is_given_up_with_its_log(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path)
    launcher.logs.mkdir()
    launcher.start(Child("weary", ["sh", "-c", "echo too tired; exit 3"]))
    with pytest.raises(LaunchError, match=r"weary keeps ending \(code 3\)(.|\n)*too tired"):
        while True:
            launcher.check()


def test_a_child_that_ends_once_in_a_while_is_started_again_for_ever(tmp_path: Path) -> None:
    launcher, child = Launcher(tmp_path), Child("weary", ["sh", "-c", "exit 3"])
    launcher.logs.mkdir()
    launcher.start(child)
    child.restarts = RESTARTS
    child.started -= LASTING_SECONDS + 1
    assert wait_for(lambda: child.process is not None and child.process.poll() == 3)
    launcher.check()
    assert child.restarts == 1
    launcher.stop()


def test_only_one_of_two_addresses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(LaunchError, match="Only DATABASE_URL is set"):
        Launcher(tmp_path).start_servers()


def test_servers_given_in_the_environment_are_used_and_none_started(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path)
    launcher.start_servers()
    assert launcher.servers is None
    assert launcher.environment["DATABASE_URL"] == os.environ["DATABASE_URL"]


COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
ELSEWHERE = yaml.safe_load((ROOT / "docker-compose.worker.yml").read_text())
WORKERS = ("interactive", "worker", "worker-gpu")
READY = {"prepare": None, "web": "Booting worker"} | dict.fromkeys(WORKERS, " ready.")
OURS = [COMPOSE["services"][name] for name in READY] + list(ELSEWHERE["services"].values())
BOTO3 = {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}
HUB = {"HF_TOKEN", "HF_ENDPOINT"}  # huggingface_hub's


@pytest.mark.parametrize("name", READY)
def test_what_a_container_would_run_runs(name: str, tmp_path: Path) -> None:
    """The command line of the service, with this session's servers in place of the containers'."""
    words = shlex.split(COMPOSE["services"][name]["command"].replace(":8000", f":{free_port()}"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, env={**os.environ, "PATH": path}, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        if (ready := READY[name]) is None:
            assert process.wait(UP_SECONDS) == 0, log.read_text()
        else:
            assert wait_for(lambda: ready in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
    finally:
        process.terminate()
        process.wait(UP_SECONDS)


def test_every_variable_of_the_containers_is_one_that_is_read() -> None:
    read = set(re.findall(r'env(?:\.\w+)?\("(\w+)"', (ROOT / "sae_backend" / "settings.py").read_text()))
    for service in OURS:
        assert set(service["environment"]) <= read | BOTO3 | HUB


def test_what_is_not_set_for_boto3_is_not_given_to_it_empty() -> None:
    for service in OURS:
        assert {service["environment"][name] for name in BOTO3} == {None}


def test_every_variable_that_containers_take_is_explained_in_the_example() -> None:
    explained = set(re.findall(r"^#?(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    for text in (ROOT / "docker-compose.yml", ROOT / "docker-compose.worker.yml"):
        assert set(re.findall(r"\$\{(\w+)", text.read_text())) | BOTO3 <= explained


def test_a_worker_on_another_host_has_what_the_one_here_has_and_no_other_service() -> None:
    [(name, there)] = ELSEWHERE["services"].items()
    here = COMPOSE["services"][name]
    for part in ("image", "build", "command", "stop_grace_period", "deploy", "security_opt", "cap_drop"):
        assert there[part] == here[part]
    assert there["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert there["environment"]["DEVICE"] == here["environment"]["DEVICE"] == "cuda"
    assert {"DATABASE_URL", "REDIS_URL", "STORE_URL"} <= there["environment"].keys() and "depends_on" not in there
