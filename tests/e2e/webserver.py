"""gunicorn as the launcher starts it, to be killed and started again, and raw requests that end in the middle."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sae_backend import launch, processes

PIECE = "application/offset+octet-stream"
SECONDS = 240.0


class WebServer:
    """The site on a port of its own; requests go with a token."""

    def __init__(
        self, environment: Mapping[str, str], logs: Path, token: str = "", prefix: tuple[str, ...] = ()
    ) -> None:
        self.environment, self.log, self.prefix = {**environment, "ALLOWED_HOSTS": "*"}, logs / "web.log", prefix
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def start(self) -> None:
        command = [*self.prefix, *launch.web("127.0.0.1", self.port).command]
        self.process: subprocess.Popen[bytes] = processes.spawn(
            command, self.log, signal.SIGKILL, env=self.environment, cwd=launch.ROOT
        )
        deadline = time.monotonic() + SECONDS
        while not launch.healthy(f"http://127.0.0.1:{self.port}"):
            assert time.monotonic() < deadline and self.process.poll() is None, processes.tail(self.log, 40)
            time.sleep(0.05)

    def report(self) -> str:
        return processes.tail(self.log, 30)

    def kill(self) -> None:
        """As a machine that loses its power does: the worker that serves requests with the one that watches it."""
        import psutil

        for child in psutil.Process(self.process.pid).children(recursive=True):
            child.kill()
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        processes.stop([self.process], (signal.SIGTERM, 60.0))

    def ask(
        self, method: str, path: str, body: bytes = b"", **headers: str
    ) -> tuple[int, Mapping[str, str], dict[str, Any] | str]:
        """Status, headers, and the body as JSON or text."""
        status, told, data = self.raw(method, path, body, **headers)
        is_json = "json" in told.get("Content-Type", "")
        return status, told, json.loads(data) if is_json else data.decode()

    def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body or None, {**self.headers, **named})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def json(self, method: str, path: str, data: Any = None) -> dict[str, Any]:
        status, _, told = self.ask(method, path, json.dumps(data or {}).encode(), Content_Type="application/json")
        assert status < 300 and isinstance(told, dict), (status, told)
        return told

    def create(self, files: str, name: str, size: int) -> str:
        """The address of a file that tus is to send."""
        import base64

        told = f"filename {base64.b64encode(name.encode()).decode()}"
        status, headers, said = self.ask(
            "POST", files, Tus_Resumable="1.0.0", Upload_Length=str(size), Upload_Metadata=told
        )
        assert status == 201, said
        return headers["Location"]

    def patch(self, place: str, at: int, data: bytes) -> tuple[int, str]:
        headers = {"Tus_Resumable": "1.0.0", "Upload_Offset": str(at), "Content_Type": PIECE}
        status, _, said = self.ask("PATCH", place, data, **headers)
        return status, str(said)

    def offset(self, place: str) -> int:
        return int(self.ask("HEAD", place, Tus_Resumable="1.0.0")[1]["Upload-Offset"])

    def begin_piece(self, place: str, at: int, announced: int, data: bytes) -> socket.socket:
        """A PATCH of which only a part is sent; its connection is the caller's to end, or not."""
        lines = [f"PATCH {place} HTTP/1.1", "Host: localhost", "Tus-Resumable: 1.0.0", f"Upload-Offset: {at}"]
        lines += [f"Content-Type: {PIECE}", f"Content-Length: {announced}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=SECONDS)
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + data)
        return connection
