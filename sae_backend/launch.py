"""Start, watch and stop the site on one machine: python -m sae_backend.launch site | demo | worker | command.

With DATABASE_URL and REDIS_URL in the environment those servers are used, otherwise embedded ones started.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sae_backend import processes
from sae_backend.embedded import AlreadyHeld, Servers, ServersError

ROOT = Path(__file__).resolve().parent.parent
MANAGE = [sys.executable, str(ROOT / "manage.py")]
HEALTHY_SECONDS = 120.0
RESTARTS = 8  # of one child, before the site gives up: more than the workers that one shard ends before its run fails
LASTING_SECONDS = 600.0  # a child that was up for so long may end as often again
# Workers take no SIGQUIT: without forks it raises inside the task. One that is killed is done again.
STOP = ((signal.SIGTERM, 4.0),)


class LaunchError(Exception):
    """The site cannot run; the message is a sentence for the person at the terminal."""


class Stopped(BaseException):
    """A signal asked the launcher to stop; raised wherever it was."""


@dataclass
class Child:
    """A process that the launcher watches, its log named after it."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started: float = 0.0


@dataclass
class Launcher:
    """The servers and the children that use them."""

    var: Path
    servers: Servers | None = None
    environment: dict[str, str] = field(default_factory=lambda: {**openness(), **os.environ})
    children: list[Child] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.var / "log"

    def start_servers(self, attach: bool = False) -> None:
        """Start the embedded servers unless others are given; `attach` may use a running launcher's."""
        given = [name for name in ("DATABASE_URL", "REDIS_URL") if os.environ.get(name)]
        self.logs.mkdir(parents=True, exist_ok=True)
        if len(given) == 1:
            raise LaunchError(f"Only {given[0]} is set: set both DATABASE_URL and REDIS_URL, or neither.")
        if given:
            return
        servers = Servers(self.var)
        self.environment |= servers.environment()
        try:
            servers.start()
            self.servers = servers
        except AlreadyHeld:
            if not attach:
                raise

    def start(self, child: Child) -> None:
        child.started = time.monotonic()
        child.process = processes.spawn(
            child.command, self.logs / f"{child.name}.log", signal.SIGKILL, env=self.environment, cwd=ROOT
        )
        if child not in self.children:
            self.children.append(child)

    def prepare(self, *arguments: str) -> None:
        """Run a management command to its end, in silence unless it fails."""
        log = self.logs / f"{arguments[0]}.log"
        child = processes.spawn([*MANAGE, *arguments], log, signal.SIGTERM, env=self.environment, cwd=ROOT)
        if child.wait() != 0:
            raise LaunchError(f"manage.py {' '.join(arguments)} failed{ending(log)}")

    def check(self) -> None:
        """Start a child that has ended again; give up on one that keeps ending, and without a server."""
        if self.servers and (name := self.servers.dead()):
            raise LaunchError(f"{name} has ended{ending(self.servers.log(name))}")
        for child in self.children:
            if child.process is not None and child.process.poll() is not None:
                self._revive(child, child.process.returncode)

    def _revive(self, child: Child, code: int) -> None:
        log = self.logs / f"{child.name}.log"
        if time.monotonic() - child.started > LASTING_SECONDS:
            child.restarts = 0
        if child.restarts >= RESTARTS:
            raise LaunchError(f"{child.name} keeps ending (code {code}){ending(log)}")
        child.restarts += 1
        say(f"{child.name} has ended (code {code}) and is started again; its log is {log}")
        self.start(child)

    def wait_until_healthy(self, url: str) -> None:
        """Wait for 200 from /healthz; a web server that ends before is not tried again."""
        web, log = self.children[0], self.logs / "web.log"
        deadline = time.monotonic() + HEALTHY_SECONDS
        while not healthy(url):
            ended = web.process is not None and web.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise LaunchError(f"The site did not come up{ending(log)}")
            time.sleep(0.1)

    def run(self, command: list[str], own_terminal: bool) -> int:
        """Run a command that prints to the terminal, watching the children meanwhile; its exit code."""
        process = subprocess.Popen(
            command,
            env=self.environment,
            cwd=ROOT,
            start_new_session=not own_terminal,
            preexec_fn=processes.tied(signal.SIGTERM),
        )
        try:
            while process.poll() is None:
                self.check()
                time.sleep(0.1)
        finally:
            processes.stop([process], (signal.SIGTERM, 3.0))
        return process.returncode

    def stay(self) -> None:
        while True:
            self.check()
            time.sleep(0.5)

    def stop(self) -> None:
        """Stop the web server and the workers, then the servers that they use."""
        processes.stop([child.process for child in self.children if child.process is not None], *STOP)
        if self.servers is not None:
            self.servers.stop()


def web(host: str, port: int) -> Child:
    """One process of many threads: pages wait for the database, not for the interpreter."""
    options = f"--bind {host}:{port} --threads 16 --timeout 120 --graceful-timeout 3 --no-control-socket"
    return Child("web", [sys.executable, "-m", "gunicorn", "browser.wsgi:application", *options.split()])


def worker(queue: str, name: str) -> Child:
    """A worker without forks, which hang where the parent has used torch.

    A worker takes back what the last one of its name had claimed: names last, and no two share one.
    """
    options = f"--pool=solo --queues={queue} --hostname={name}@%h --loglevel=INFO"
    alone = ["--without-gossip", "--without-mingle"]  # asking other workers takes a second
    command = [sys.executable, "-m", "celery", "-A", "sae_backend", "worker", *options.split(), *alone]
    return Child(name, command)


def openness() -> dict[str, str]:
    """Who may change things: everybody where only this machine reaches the site, else who is logged in.

    A page of another site could have its own name lead to this machine's address: only this machine's names are served.
    """
    if not loopback(os.environ.get("HOST") or "127.0.0.1"):
        return {"OPEN_TO_ALL": "0"}
    return {"OPEN_TO_ALL": "1", "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1]"}


def loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.HTTPError):
        return False


def claim_port(host: str, port: int) -> None:
    """Raise LaunchError unless the port can be listened on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"Port {port} of {host} cannot be used ({error.strerror}). Perhaps the site runs already: "
                f"stop what uses the port, or choose another, as in PORT={port + 1} make demo."
            ) from error


def build_static(launcher: Launcher) -> None:
    """Collect and compress the static files, which takes seconds, where they or the packages have changed."""
    built = launcher.var / "static.built"
    sources = [ROOT / "requirements.txt", ROOT / "sae_backend" / "settings.py", *(ROOT / "static").rglob("*")]
    state = "".join(f"{path} {path.stat().st_mtime_ns}\n" for path in sorted(sources))
    if not built.exists() or built.read_text() != state:
        launcher.prepare("collectstatic", "--no-input", "--clear")
        built.write_text(state)


def port_wanted() -> int:
    """PORT, or 8000."""
    words = os.environ.get("PORT") or "8000"
    if not words.isdecimal() or not 0 < int(words) < 65536:
        raise LaunchError(f"PORT is {words!r}; it must be a number from 1 to 65535, as in PORT=8001 make demo.")
    return int(words)


def start_site(launcher: Launcher) -> str:
    """Bring everything up; the address."""
    host, port = os.environ.get("HOST") or "127.0.0.1", port_wanted()
    claim_port(host, port)
    say("Starting PostgreSQL and Redis …")
    launcher.start_servers()
    launcher.prepare("migrate", "--no-input")
    build_static(launcher)
    say("Starting the web server and the workers …")
    launcher.start(web(host, port))
    for queue in ("compute", "interactive"):
        launcher.start(worker(queue, queue))
    url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
    launcher.wait_until_healthy(url)
    return url


def site(launcher: Launcher, _: list[str]) -> int:
    url = start_site(launcher)
    say(f"The site is at {url}/ (Ctrl-C stops it; logs in {launcher.logs})")
    launcher.stay()
    return 0


def demo(launcher: Launcher, _: list[str]) -> int:
    url = start_site(launcher)
    say(f"The site is at {url}/ and fills while the demo is computed")
    if code := launcher.run([*MANAGE, "load_demo"], own_terminal=False):
        raise LaunchError(f"Loading the demo failed (code {code}); the workers' logs are in {launcher.logs}.")
    say(f"The demo is ready: {url}/ (Ctrl-C stops it; a second start keeps all data)")
    launcher.stay()
    return 0


def one_worker(launcher: Launcher, queues: list[str]) -> int:
    launcher.start_servers(attach=True)
    for queue in queues or ["compute"]:
        launcher.start(worker(queue, f"{queue}-{os.getpid()}"))
    say(f"Working on {', '.join(queues or ['compute'])} (Ctrl-C stops it; logs in {launcher.logs})")
    launcher.stay()
    return 0


def command(launcher: Launcher, arguments: list[str]) -> int:
    launcher.start_servers(attach=True)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is the command's, say a shell's
    return launcher.run([*MANAGE, *arguments], own_terminal=True)


ACTIONS = {"site": site, "demo": demo, "worker": one_worker, "command": command}


def ending(log: Path) -> str:
    return f"; the end of {log}:\n{processes.tail(log)}"


def say(sentence: str) -> None:
    print(sentence, flush=True)


def _stop(number: int, _: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)  # stopping is not interrupted
    raise Stopped(signal.Signals(number).name)


@contextmanager
def stopping(launcher: Launcher) -> Iterator[None]:
    """Turn signals into Stopped, and stop everything at the end, whatever it is."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup asks
        signal.signal(signal.SIGHUP, _stop)
    try:
        yield
    except Stopped:
        say("\nStopping …")
    finally:
        launcher.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sae_backend.launch", description=__doc__)
    parser.add_argument("--stop-with-parent", action="store_true", help="stop when the caller is gone")
    parser.add_argument("action", choices=list(ACTIONS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="a worker's queues, or manage.py's words")
    options = parser.parse_args()
    if options.stop_with_parent:
        processes.end_with_parent(signal.SIGTERM)
    launcher = Launcher(Path(os.environ.get("VAR_DIR") or ROOT / "var").resolve())
    try:
        with stopping(launcher):
            return ACTIONS[options.action](launcher, options.arguments)
    except (LaunchError, ServersError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
