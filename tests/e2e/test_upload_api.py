"""Uploads with real servers, a real worker and real faults: what was sent is never sent twice, nor lost."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.contrib.auth.models import User
from django.db import connection

from browser import accounts
from sae_backend.models import Dataset, Run, Sae, SaeImport
from tests import hub as stand_in
from tests.backend import demo
from tests.e2e import small_disk
from tests.e2e.crew import Workers, until
from tests.e2e.small_disk import SmallDisk
from tests.e2e.webserver import WebServer

pytestmark = pytest.mark.django_db(transaction=True)
WEIGHTS = demo.SAE / "sae_weights.safetensors"
CONFIG = demo.SAE / "cfg.json"


@pytest.fixture
def token(transactional_db: None) -> str:
    return accounts.new_token(User.objects.create_user("owner"), "tests")[1]


@pytest.fixture
def environment(site_environment: dict[str, str], tmp_path: Path, settings: Any) -> dict[str, str]:
    """Shared files of this test alone."""
    settings.STORE_URL = str(tmp_path / "store")
    return {**site_environment, "STORE_URL": str(tmp_path / "store")}


@pytest.fixture
def web(environment: dict[str, str], tmp_path: Path, token: str) -> Iterator[WebServer]:
    server = WebServer(environment, tmp_path, token)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def impatient(environment: dict[str, str], tmp_path: Path, token: str) -> Iterator[WebServer]:
    server = WebServer({**environment, "UPLOAD_IDLE_SECONDS": "4"}, tmp_path, token)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def crew(workers: Workers, environment: dict[str, str]) -> Workers:
    workers.environment |= {"STORE_URL": environment["STORE_URL"]}
    return workers


def the_import() -> SaeImport:
    return SaeImport.objects.select_related("run", "sae").get()


def is_live() -> bool:
    row = the_import()
    assert not row.error, row.error
    return row.run is not None and row.run.state == Run.State.LIVE


def staged(store: Path) -> int:
    """Bytes of the one file on its way."""
    return sum(path.stat().st_size for path in (store / "incoming").rglob("*") if path.is_file())


def test_an_upload_that_is_cut_off_goes_on_after_the_server_was_killed_and_comes_to_live_pages(
    web: WebServer, crew: Workers, dataset: Dataset, tmp_path: Path
) -> None:
    made, data = web.json("POST", "/imports", {"name": "mine"}), WEIGHTS.read_bytes()
    place = web.create(made["files_url"], "deep/sae_weights.safetensors", len(data))
    half = len(data) // 2
    sender = web.begin_piece(place, 0, len(data), data[:half])
    until(lambda: staged(tmp_path / "store") > half - 70_000, web.report)
    web.kill()
    sender.close()
    web.start()
    at = web.offset(place)
    assert half - 70_000 < at <= half
    assert web.patch(place, at, data[at:])[0] == 204
    config = web.create(made["files_url"], "deep/cfg.json", CONFIG.stat().st_size)
    assert web.patch(config, 0, CONFIG.read_bytes())[0] == 204
    crew.start()
    assert web.json("POST", made["url"] + "/check")["state"] == "checking"
    crew.wait_for(lambda: the_import().state == SaeImport.State.WAITING)
    report = web.json("GET", made["json"])["report"]
    assert report["ready"] and report["trial"]["state"] == "ok", report
    assert web.json("POST", made["url"] + "/start")["state"] == "queued"
    crew.wait_for(is_live)
    sae = web.json("GET", made["json"])["sae"]
    assert sae["name"] == "mine" and web.ask("GET", f"{sae['url']}.json")[0] == 200
    assert web.ask("GET", f"{sae['url']}/0.json")[0] == 200


def test_of_two_writers_one_is_refused_and_a_silent_one_does_not_hold_a_file_for_ever(
    impatient: WebServer, tmp_path: Path
) -> None:
    web, data, senders = impatient, bytes(range(256)) * 4000, []
    place = web.create(web.json("POST", "/imports")["files_url"], "ae.pt", len(data))

    def fall_silent(at: int) -> None:
        """After some bytes: before they are there, ours could be first, and be who holds the file."""
        senders.append(web.begin_piece(place, at, len(data) - at, data[at : at + 70_000]))
        until(lambda: staged(tmp_path / "store") > at, web.report)

    fall_silent(0)
    while (status := web.patch(place, 0, b"")[0]) == 409:  # its time was over before we asked
        fall_silent(web.offset(place))
    assert status == 423
    until(lambda: web.patch(place, at := web.offset(place), data[at:])[0] == 204, web.report)
    assert web.offset(place) == len(data)
    for silent in senders:
        silent.close()


def test_a_connection_that_is_lost_leaves_what_came(web: WebServer) -> None:
    made, data = web.json("POST", "/imports"), bytes(range(256)) * 1000
    place = web.create(made["files_url"], "ae.pt", len(data))
    web.begin_piece(place, 0, len(data), data[:70_000]).close()
    until(lambda: web.offset(place) == 70_000, web.report)
    until(lambda: web.patch(place, 70_000, data[70_000:])[0] == 204, web.report)


def test_one_line_of_curl_comes_to_live_pages(web: WebServer, crew: Workers, dataset: Dataset, token: str) -> None:
    crew.start()
    files = [part for path in (WEIGHTS, CONFIG) for part in ("-F", f"file=@{path}")]
    command = ["curl", "-sS", "-H", f"Authorization: Bearer {token}", *files, "-F", "name=by curl"]
    done = subprocess.run([*command, f"http://127.0.0.1:{web.port}/api/imports"], capture_output=True, check=True)
    said = json.loads(done.stdout)
    assert said["state"] == "checking" and [file["name"] for file in said["files"]] == [CONFIG.name, WEIGHTS.name]
    crew.wait_for(is_live)
    said = web.json("GET", said["json"])
    assert said["job"]["state"] == "live" and said["sae"]["name"] == "by curl"
    assert web.ask("GET", said["sae"]["url"] + "/7.json")[0] == 200


@pytest.fixture
def hub(crew: Workers, tmp_path: Path) -> Iterator[stand_in.Hub]:
    with stand_in.serving() as hub:
        crew.environment |= hub.environment(tmp_path / "hf")
        files = {f"layer_2/{path.name}": path.read_bytes() for path in demo.SAE.iterdir()}
        hub.add("model", "me/saes", {**files, "layer_3/sae_weights.safetensors": b"another", "README.md": b"words"})
        yield hub


def test_an_id_of_the_hub_comes_to_live_pages_though_its_worker_is_killed_in_the_download(
    web: WebServer, crew: Workers, dataset: Dataset, hub: stand_in.Hub
) -> None:
    import threading

    repo = hub.repos["model", "me/saes"]
    repo.slow = threading.Event()
    crew.start()
    web.json("POST", "/api/imports", {"hub": "me/saes:layer_2"})
    crew.wait_for(lambda: any(asked.startswith("GET /me/saes/resolve") for asked in hub.requests))
    crew.kill("compute")
    repo.slow.set()
    crew.start()
    crew.wait_for(is_live)
    row = the_import()
    assert row.attempts >= 1 and row.sae is not None and row.report["hub"]["commit"] == repo.commit
    assert row.sae.metadata["source"]["id"] == "me/saes:layer_2"
    assert not [asked for asked in hub.requests if "layer_3" in asked or "README" in asked]


@contextmanager
def nobody_may_store_an_sae() -> Iterator[None]:
    """Have a worker wait in the middle of an import."""
    with psycopg.connect(**connection.get_connection_params() | {"cursor_factory": None}) as other:
        other.execute("select pg_advisory_xact_lock(hashtext('sae'), 0)")
        yield


def waits_in_an_import(before: int) -> int:
    """How often it was taken up, once that is more than before."""
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_locks where locktype = 'advisory' and not granted and objsubid = 2")
        waits, tries = cursor.fetchone()[0], the_import().tries
    return tries if waits and tries > before else 0


@pytest.mark.parametrize("fault", ["killed", "hanging"])
def test_an_import_is_taken_from_a_worker_that_ended_or_hangs_and_done_once(
    web: WebServer, crew: Workers, dataset: Dataset, fault: str
) -> None:
    crew.start("one")
    body = {"hub": "", "lm": dataset.lm.name}
    made = web.json("POST", "/imports", body)
    for path in (WEIGHTS, CONFIG):
        place = web.create(made["files_url"], path.name, path.stat().st_size)
        assert web.patch(place, 0, path.read_bytes())[0] == 204
    web.json("POST", made["url"] + "/check")
    crew.wait_for(lambda: the_import().report.get("ready"))
    with nobody_may_store_an_sae():
        web.json("POST", made["url"] + "/start")
        tries = crew.wait_for(lambda: waits_in_an_import(0))
        if fault == "killed":
            crew.kill("one")
        else:
            crew.running["one"].send_signal(signal.SIGSTOP)
        crew.start("two")
        crew.wait_for(lambda: waits_in_an_import(tries))
    crew.wait_for(is_live)
    if fault == "hanging":
        crew.running["one"].send_signal(signal.SIGCONT)
    assert (Sae.objects.count(), Run.objects.count(), the_import().state) == (1, 1, SaeImport.State.DONE)


def test_a_disk_that_fills_up_in_the_middle_is_a_sentence_and_the_upload_goes_on_once_there_is_room(
    environment: dict[str, str], tmp_path: Path, token: str
) -> None:
    (tmp_path / "mounts").mkdir()
    if not small_disk.possible(tmp_path / "mounts"):
        pytest.skip("no user namespaces with mounts here (sysctl user.max_user_namespaces, or a container's profile)")
    incoming = tmp_path / "store" / "incoming"
    incoming.mkdir(parents=True)
    data = bytes(range(256)) * 8000
    with SmallDisk(incoming, megabytes=4) as disk:
        web = WebServer({**environment, "UPLOAD_RESERVE_BYTES": "0"}, tmp_path, token, disk.prefix)
        web.start()
        try:
            made = web.json("POST", "/imports")
            place = web.create(made["files_url"], "ae.pt", len(data))
            _fill_in_the_middle(web, disk, place, data)
            disk.make_room()
            at = web.offset(place)
            assert web.patch(place, at, data[at:])[0] == 204
            [file] = web.json("GET", made["json"])["files"]
            assert file["complete"] and file["received"] == len(data)
        finally:
            web.stop()


def _fill_in_the_middle(web: WebServer, disk: SmallDisk, place: str, data: bytes) -> None:
    sender = web.begin_piece(place, 0, len(data), data[:500_000])
    until(lambda: web.offset(place) > 200_000, web.report)
    disk.fill()
    sender.sendall(data[500_000:])
    assert sender.recv(65536).startswith(b"HTTP/1.1 507 ")
    sender.close()
    assert 200_000 < web.offset(place) < len(data)
    status, said = web.patch(place, web.offset(place), data[web.offset(place) :])
    assert status == 507 and "free space" in said
