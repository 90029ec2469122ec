"""A stand-in for the Hugging Face hub: the part of its HTTP that huggingface_hub asks for, served from memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Repo:
    """Files at one commit; `status` and `code` are how the hub says no."""

    files: Mapping[str, bytes]
    gated: bool = False  # but for who comes with Hub.token
    status: int = 200
    code: str = ""
    slow: threading.Event | None = None  # bytes of files wait for it
    silent: str = ""  # stops answering in the list, half through each file, or in what Xet asks

    @property
    def commit(self) -> str:
        digests = {name: hashlib.sha1(data).hexdigest() for name, data in self.files.items()}
        return hashlib.sha1(json.dumps(digests).encode()).hexdigest()


@dataclass
class Hub:
    """Repositories by kind and name; the requests that came; the token that opens gated ones."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    token: str = "hf_good"
    over: threading.Event = field(default_factory=threading.Event)  # until then it is silent

    def add(self, kind: str, name: str, files: Mapping[str, bytes] | Path, **more: Any) -> Repo:
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in sorted(files.rglob("*")) if p.is_file()}
        return self.repos.setdefault((kind, name), Repo(files, **more))

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that is to use it."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        if path.startswith("v2/"):
            self.hub.over.wait(90)  # how Xet's files are to be put together
        elif path.count("/") < 2:
            self._no(404, "")  # what huggingface_hub asks besides
        elif path.startswith("api/"):
            kind, space, name, *rest = path.removeprefix("api/").split("/", 4)
            self._api(kind.removesuffix("s"), f"{space}/{name}", rest)
        else:
            kind, path = ("dataset", path[9:]) if path.startswith("datasets/") else ("model", path)
            space, name, _, revision, *rest = path.split("/", 4)
            self._file(kind, f"{space}/{name}", revision, rest[0] if rest else "")

    do_HEAD = do_GET

    def log_message(self, *args: Any) -> None:
        pass

    def _repo(self, kind: str, name: str, revision: str) -> Repo | None:
        repo = self.hub.repos.get((kind, name))
        if repo is None:
            return self._no(401, "RepoNotFound")
        if repo.status != 200:
            return self._no(repo.status, repo.code)
        if repo.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._no(403, "GatedRepo")
        if revision not in ("main", repo.commit):
            return self._no(404, "RevisionNotFound")
        return repo

    def _api(self, kind: str, name: str, rest: list[str]) -> None:
        what, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        inside = ""
        if what == "tree":
            revision, _, inside = revision.partition("/")
        repo = self._repo(kind, name, revision)
        if repo is None:
            return
        if repo.silent == what == "tree":
            self.hub.over.wait(90)
        elif what == "xet-read-token":
            access = {"Cas-Url": self.hub.url, "Access-Token": "t", "Token-Expiration": "4000000000"}
            self._send(200, b"{}", {f"X-Xet-{name}": value for name, value in access.items()})
        elif what == "tree":
            listed = [{"type": "file", "path": n, "size": len(b), "oid": _oid(b)} for n, b in repo.files.items()]
            self._send(200, json.dumps([e for e in listed if str(e["path"]).startswith(inside)]).encode())
        else:
            siblings = [{"rfilename": n} for n in repo.files]
            info = {"id": name, "sha": repo.commit, "private": False, "tags": [], "siblings": siblings, "downloads": 0}
            self._send(200, json.dumps(info).encode())

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name, revision)
        if repo is None:
            return
        if path not in repo.files:
            self._no(404, "EntryNotFound")
            return
        body = repo.files[path]
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{_oid(body)}"'}
        if repo.silent == "xet":
            route = f"{self.hub.url}/api/{kind}s/{name}/xet-read-token/main"
            headers |= {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": route, "X-Linked-Size": str(len(body))}
        self._send(200, body, headers, self.hub.over if repo.silent == "file" else repo.slow)

    def _no(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code} if code else {})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str] = {}, slow: threading.Event | None = None  # noqa: B006
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2 if slow else len(body)
        self.wfile.write(body[:half])
        if slow:
            self.wfile.flush()
            slow.wait(90)
            self.wfile.write(body[half:])


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a port of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()


@contextmanager
def used_here(home: Path) -> Iterator[Hub]:
    """A hub that this process asks, which the tests' environment forbids it to ask any."""
    from huggingface_hub import constants

    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": hub.url, "HF_HUB_CACHE": str(home)}.items():
            patch.setattr(constants, name, value)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.delenv("HF_TOKEN", raising=False)
        yield hub
