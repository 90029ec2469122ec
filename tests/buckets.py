"""A real S3 service in a process of its own, whose users sign their requests, and a wire to it that can be cut."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3

from sae_backend import processes

BUCKET, PREFIX = "latents-tests", "one site"
LISTED_AT_ONCE = 20
BEFORE_SIGNATURES = 4  # requests: the bucket, the user, its key, its rights
RIGHTS = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
AT_ONCE = struct.pack("ii", 1, 0)  # a socket that is closed so resets its connection


class Service:
    """The service with one bucket and one user."""

    def __init__(self, port: int) -> None:
        self.port = port
        nobody = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing"}
        self._client("s3", **nobody).create_bucket(Bucket=BUCKET)
        iam = self._client("iam", **nobody)
        iam.create_user(UserName="worker")
        self.key = iam.create_access_key(UserName="worker")["AccessKey"]
        iam.put_user_policy(UserName="worker", PolicyName="all", PolicyDocument=RIGHTS)

    def _client(self, service: str, **credentials: str) -> Any:
        return boto3.client(
            service, endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1", **credentials
        )

    def environment(self, port: int | None = None) -> dict[str, str]:
        """What a worker on another host is told: where the service is, perhaps along a wire, and its credentials."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "AWS_ACCESS_KEY_ID": self.key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": self.key["SecretAccessKey"],
            "AWS_REGION": "us-east-1",
        }

    @property
    def client(self) -> Any:
        """The user's own, past every wire."""
        return self._client(
            "s3", aws_access_key_id=self.key["AccessKeyId"], aws_secret_access_key=self.key["SecretAccessKey"]
        )

    def keys(self) -> list[str]:
        listed = self.client.list_objects_v2(Bucket=BUCKET, MaxKeys=1000)
        return [found["Key"] for found in listed.get("Contents", ())]

    def empty(self) -> None:
        for key in self.keys():
            self.client.delete_object(Bucket=BUCKET, Key=key)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    log = folder / "bucket.log"
    limits = {"INITIAL_NO_AUTH_ACTION_COUNT": BEFORE_SIGNATURES, "MOTO_S3_DEFAULT_MAX_KEYS": LISTED_AT_ONCE}
    environment = {**os.environ, **{name: str(value) for name, value in limits.items()}, "PYTHONUNBUFFERED": "1"}
    command = [str(Path(sys.executable).with_name("moto_server")), "--port", "0"]
    process = processes.spawn(command, log, signal.SIGKILL, env=environment)
    try:
        yield Service(_port(log, process.poll))
    finally:
        processes.stop([process])


def _port(log: Path, ended: Any, seconds: float = 120.0) -> int:
    deadline = time.monotonic() + seconds
    while not (found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", log.read_text())):
        assert ended() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    return int(found[1])


class Wire:
    """A port that passes everything on to another, until it is cut."""

    def __init__(self, port: int) -> None:
        self.refusals = 0.0  # connections to refuse before it carries again
        self.limit: int | None = None  # of bytes from the service, after which a connection breaks
        self.hold: int | None = None  # of bytes either way, after which a connection falls silent for good
        self.held = threading.Event()  # one has
        self.received = 0  # bytes from the service
        self._to, self._open = port, list[socket.socket]()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self, refusals: float = float("inf")) -> None:
        """Break every connection and refuse so many new ones."""
        self.refusals = refusals
        for each in self._open:
            self._break(each)
        self._open.clear()

    def close(self) -> None:
        self.cut()
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                if self.refusals > 0:
                    self.refusals -= 1
                    self._break(here)
                else:
                    self._carry(here, socket.create_connection(("127.0.0.1", self._to)))

    def _carry(self, here: socket.socket, there: socket.socket) -> None:
        self._open += [here, there]
        for source, target, answer in ((here, there, False), (there, here, True)):
            threading.Thread(target=self._pump, args=(source, target, answer), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answer: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed += len(data)
                self.received += len(data) if answer else 0
                if answer and self.limit is not None and passed > self.limit:
                    self._break(target)
                if self.hold is not None and passed > self.hold:
                    self.held.set()
                    threading.Event().wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _break(self, each: socket.socket) -> None:
        with suppress(OSError):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            each.shutdown(socket.SHUT_RDWR)
            each.close()
