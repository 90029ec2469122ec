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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

from bench.report import line
from browser.queries.columns import BY_NAME

REQUESTS = 500
CLIENTS = 4  # who ask side by side, for pages a second
CPU = "ms of the web server's CPU, PostgreSQL's left out"
TIMES = 3  # that every table is asked for; the middle one counts


def measure(run: Any, prefix: str = "") -> None:
    """Latent pages, their JSON, and tables by every filter in every order; waits, and the CPU that a page costs."""
    rng = random.Random(0)
    base = f"/s/{run.sae.public_id}"
    latents = [f"{base}/{rng.randrange(run.sae.d_sae)}" for _ in range(REQUESTS)]
    with _server() as server:
        _report(f"{prefix}page", server, latents)
        _report(f"{prefix}page_json", server, [f"{path}.json" for path in latents])
        _report(f"{prefix}page_304", server, [latents[0]] * REQUESTS, _etag(server.port, latents[0]))
        _side_by_side(f"{prefix}page", server, latents)
        _tables(prefix, server, base, run.summary["quantiles"])


def _etag(port: int, path: str) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return {"If-None-Match": response.headers["ETag"]}


def _report(name: str, server: Server, paths: list[str], headers: dict[str, str] | None = None) -> None:
    _times(server.port, paths[:20], headers)
    before = server.cpu()
    times = sorted(_times(server.port, paths, headers))
    line(f"{name}_cpu_ms", (server.cpu() - before) / len(paths) * 1e3, CPU)
    line(f"{name}_p50_ms", times[len(times) // 2] * 1e3, "ms")
    line(f"{name}_p99_ms", times[int(len(times) * 0.99)] * 1e3, "ms")


def _side_by_side(name: str, server: Server, paths: list[str]) -> None:
    begun = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda i: _times(server.port, paths[i::CLIENTS]), range(CLIENTS)))
    rate = len(paths) / (time.perf_counter() - begun)
    line(f"{name}s_per_second", rate, f"of one process, {CLIENTS} readers at once")


def _tables(prefix: str, server: Server, base: str, quantiles: dict[str, list[float]]) -> None:
    """Every filter, from what lets nearly all through to what matches nothing, in every order that a table has."""
    sorts = [sign + column for column in BY_NAME for sign in ("", "-")]
    asked = [f"{query}&sort={sort}" for query in ("", *_filters(quantiles)) for sort in sorts]
    for query in asked[:: len(sorts)]:  # columns come into memory with the first who asks for them
        _times(server.port, [f"{base}?{query}"])
    for sort in sorts:
        _times(server.port, [f"{base}?status=rare&sort={sort}"])
    before, found = server.cpu(), []
    for query in asked:
        found.append((sorted(_times(server.port, [f"{base}?{query}"] * TIMES))[TIMES // 2], query))
    found.sort()
    per_page = (server.cpu() - before) / len(asked) / TIMES
    line(f"{prefix}table_cpu_ms", per_page * 1e3, CPU)
    for share in (50, 99, 100):
        took, query = found[min(len(found) - 1, len(found) * share // 100)]
        line(f"{prefix}table_p{share}_ms", took * 1e3, f"ms, of {len(found)} filters in orders; {query}")


def _filters(quantiles: dict[str, list[float]]) -> list[str]:
    from sae_backend.models import STATUS_NAMES

    density, kurtosis = quantiles["density"], quantiles["kurtosis"]
    return [
        *(f"status={name}" for name in (*STATUS_NAMES, "dead,rare,alive,dense")),
        *(f"dmin={density[i]!r}" for i in (1, 50, 99)), *(f"kmax={kurtosis[i]!r}" for i in (1, 50, 99)),
        f"dmin={density[50]!r}&kmin={kurtosis[50]!r}", f"dmin={density[49]!r}&dmax={density[51]!r}&status=alive",
        f"by=opposing_cos&to={quantiles['opposing_cos'][50]!r}", "by=decoder_norm&from=1e9", "token=self",
        f"token=%22%20%3D%22&of=promoted&dmin={density[50]!r}",
    ]  # fmt: skip


def _times(port: int, paths: list[str], headers: dict[str, str] | None = None) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    return [_get(connection, path, headers or {}) for path in paths]


def _get(connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> float:
    """As a browser asks: compressed."""
    begun = time.perf_counter()
    connection.request("GET", path, headers={"Accept-Encoding": "gzip", **headers})
    response = connection.getresponse()
    response.read()
    if response.status != (304 if headers else 200):
        raise RuntimeError(f"{path} answered {response.status}")
    return time.perf_counter() - begun


@dataclass(frozen=True)
class Server:
    """The production web server with one process for requests."""

    port: int
    process: psutil.Process

    def cpu(self) -> float:
        """Seconds that it has spent."""
        times = [p.cpu_times() for p in self.process.children(recursive=True)]
        return sum(t.user + t.system for t in times)


@contextmanager
def _server() -> Iterator[Server]:
    """On a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "browser.wsgi:application", "--threads", "4", "--log-level", "warning"]
    server = subprocess.Popen([*command, "--bind", f"127.0.0.1:{port}"], env=os.environ)
    try:
        _wait(port)
        yield Server(port, psutil.Process(server.pid))
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
