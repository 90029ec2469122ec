"""Latency of pages from a web server of its own, asked over one connection after another, as a reader does."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.report import line

REQUESTS = 500


def measure(run: Any, prefix: str = "") -> None:
    """p50 and p99 of latent pages, their JSON, and table pages in every order."""
    rng = random.Random(0)
    base = f"/s/{run.sae.public_id}"
    latents = [f"{base}/{rng.randrange(run.sae.d_sae)}" for _ in range(REQUESTS)]
    with _server() as port:
        _report(f"{prefix}page", _times(port, latents))
        _report(f"{prefix}page_json", _times(port, [f"{path}.json" for path in latents]))
        _report(f"{prefix}sae_page", _times(port, [f"{base}?sort={s}" for s in _sorts() for _ in range(20)]))


def _sorts() -> list[str]:
    return [sign + column for column in ("density", "max_act", "kurtosis", "opposing_cos") for sign in ("", "-")]


def _report(name: str, times: list[float]) -> None:
    times.sort()
    line(f"{name}_p50_ms", times[len(times) // 2] * 1e3, "ms")
    line(f"{name}_p99_ms", times[int(len(times) * 0.99)] * 1e3, "ms")


def _times(port: int, paths: list[str]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for path in paths[:20]:
        _get(connection, path)
    return [_get(connection, path) for path in paths]


def _get(connection: http.client.HTTPConnection, path: str) -> float:
    begun = time.perf_counter()
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"{path} answered {response.status}")
    return time.perf_counter() - begun


@contextmanager
def _server() -> Iterator[int]:
    """The production web server, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "browser.wsgi:application", "--threads", "4", "--log-level", "warning"]
    server = subprocess.Popen([*command, "--bind", f"127.0.0.1:{port}"], env=os.environ)
    try:
        _wait(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def _wait(port: int) -> None:
    for _ in range(300):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError("the web server did not come up within 30 seconds")
