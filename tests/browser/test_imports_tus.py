"""Files in pieces by the tus protocol: offsets, checksums, limits, names, owners, and faults in the middle."""

from __future__ import annotations

import base64
import errno
import fcntl
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import Client

from browser import accounts
from sae_backend import intake, storage
from sae_backend.intake import errors, limits, receiving
from sae_backend.models import SaeImport, UploadFile

pytestmark = pytest.mark.django_db
DATA = bytes(range(256)) * 40
PIECE = "application/offset+octet-stream"


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("owner")


@pytest.fixture
def row(owner: User) -> SaeImport:
    return intake.open_import(owner)


class Tus:
    """A client of the protocol with a token."""

    def __init__(self, user: User, row: SaeImport) -> None:
        self.client = Client(enforce_csrf_checks=True)
        self.headers = {"Authorization": f"Bearer {accounts.new_token(user, 'tests')[1]}", "Tus-Resumable": "1.0.0"}
        self.files = f"/imports/{row.key}/files"

    def send(self, method: str, path: str, data: bytes = b"", **headers: str) -> HttpResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        kind = named.pop("Content-Type", PIECE if method == "PATCH" else "")
        told = {"CONTENT_TYPE": kind, "CONTENT_LENGTH": str(len(data))}
        return self.client.generic(method, path, data, headers={**self.headers, **named}, **told)  # type: ignore[return-value]

    def create(self, size: int = len(DATA), name: str = "ae.pt", data: bytes = b"", **headers: str) -> HttpResponse:
        told = f"filename {base64.b64encode(name.encode()).decode()}"
        headers = {"Upload_Length": str(size), "Upload_Metadata": told, **headers}
        return self.send("POST", self.files, data, **headers)

    def place(self, size: int = len(DATA), name: str = "ae.pt", **headers: str) -> str:
        answer = self.create(size, name, **headers)
        assert answer.status_code == 201, answer.content
        return str(answer["Location"])

    def patch(self, place: str, at: int, data: bytes, **headers: str) -> HttpResponse:
        return self.send("PATCH", place, data, **{"Upload_Offset": str(at), **headers})

    def offset(self, place: str) -> int:
        return int(self.send("HEAD", place)["Upload-Offset"])


@pytest.fixture
def tus(owner: User, row: SaeImport) -> Tus:
    return Tus(owner, row)


def content(row: SaeImport, file: UploadFile | None = None) -> bytes:
    file = file or row.files.get()
    with storage.current().reading(receiving.folder(row), [str(file.key)]) as here:
        return (here / str(file.key)).read_bytes()


def text(answer: HttpResponse) -> str:
    return answer.content.decode()


def test_a_file_arrives_in_pieces_under_a_name_of_ours(tus: Tus, row: SaeImport) -> None:
    place = tus.place(name="../../my ae.pt")
    assert tus.offset(place) == 0
    for at in range(0, len(DATA), 3000):
        answer = tus.patch(place, at, DATA[at : at + 3000])
        assert answer.status_code == 204
        assert int(answer["Upload-Offset"]) == min(at + 3000, len(DATA)) == tus.offset(place)
        assert ("Upload-Expires" in answer) == (tus.offset(place) < len(DATA))
    file = row.files.get()
    assert (file.name, file.complete, file.received) == ("my ae.pt", True, len(DATA)) and content(row) == DATA
    assert not receiving.staged(file).exists() and place.endswith(str(file.key))
    assert tus.patch(place, len(DATA), b"").status_code == 204  # the answer to the last piece was lost


def test_it_says_what_it_can(tus: Tus) -> None:
    answer = tus.send("OPTIONS", tus.files)
    assert answer.status_code == 204 and answer["Tus-Version"] == "1.0.0" and int(answer["Tus-Max-Size"]) > 0
    assert "creation-with-upload" in answer["Tus-Extension"] and "sha256" in answer["Tus-Checksum-Algorithm"]


def test_another_version_a_wrong_type_and_missing_numbers_are_refused(tus: Tus) -> None:
    assert tus.create(Tus_Resumable="0.2.2").status_code == 412
    assert tus.create(Tus_Resumable="0.2.2")["Tus-Version"] == "1.0.0"
    place = tus.place()
    assert tus.patch(place, 0, b"x", Content_Type="application/octet-stream").status_code == 415
    assert tus.send("PATCH", place, b"x").status_code == 400
    assert tus.patch(place, 0, b"x", Upload_Offset="-1").status_code == 400
    assert tus.create(Upload_Length="many").status_code == 400
    assert tus.create(Upload_Defer_Length="1").status_code == 400
    assert tus.create(Upload_Metadata="filename %%%").status_code == 400
    assert tus.send("GET", place).status_code == 405


def test_a_wrong_offset_and_more_than_declared_are_refused_and_change_nothing(tus: Tus) -> None:
    place = tus.place(size=100)
    assert tus.patch(place, 0, DATA[:60]).status_code == 204
    answer = tus.patch(place, 0, DATA[:60])
    assert answer.status_code == 409 and "goes on at byte 60, not at 0" in text(answer)
    assert tus.patch(place, 61, DATA[:1]).status_code == 409
    assert tus.patch(place, 60, DATA[:41]).status_code == 413 and tus.offset(place) == 60


def test_a_connection_that_ends_early_loses_nothing_of_what_came(tus: Tus, row: SaeImport) -> None:
    place = tus.place()
    assert intake.append(row.files.get(), 0, 9000, io.BytesIO(DATA[:5000])) == 5000 == tus.offset(place)
    assert row.files.get().received == 5000
    assert tus.patch(place, 5000, DATA[5000:]).status_code == 204 and content(row) == DATA


def test_what_a_killed_server_had_written_counts(tus: Tus, row: SaeImport) -> None:
    place = tus.place()
    receiving.staged(row.files.get()).write_bytes(DATA[:777])  # it never came to note it
    assert tus.offset(place) == 777
    assert tus.patch(place, 777, DATA[777:]).status_code == 204 and content(row) == DATA


def test_two_writers_at_once_are_refused(tus: Tus, row: SaeImport) -> None:
    place = tus.place()
    with receiving.staged(row.files.get()).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        answer = tus.patch(place, 0, DATA)
        assert answer.status_code == 423 and "another request is writing ae.pt" in text(answer).lower()
        assert tus.send("HEAD", place).status_code == 200
    assert tus.patch(place, 0, DATA).status_code == 204 and content(row) == DATA


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_piece_with_a_checksum_is_kept_only_where_it_is_right(tus: Tus, row: SaeImport, algorithm: str) -> None:
    place = tus.place()
    right = base64.b64encode(hashlib.new(algorithm, DATA[:100]).digest()).decode()
    assert tus.patch(place, 0, DATA[1:101], Upload_Checksum=f"{algorithm} {right}").status_code == 460
    assert tus.offset(place) == 0
    assert tus.patch(place, 0, DATA[:100], Upload_Checksum=f"{algorithm} {right}").status_code == 204
    with pytest.raises(errors.Damaged):  # the connection ends in the middle
        intake.append(row.files.get(), 100, 100, io.BytesIO(DATA[:50]), algorithm, base64.b64decode(right))
    assert tus.offset(place) == 100
    assert tus.patch(place, 100, DATA[:9], Upload_Checksum="md5 AAAA").status_code == 400


def test_a_file_may_come_with_its_creation_or_be_empty(tus: Tus, row: SaeImport) -> None:
    answer = tus.create(data=DATA[:500], Content_Type=PIECE)
    assert answer.status_code == 201 and answer["Upload-Offset"] == "500"
    assert tus.patch(answer["Location"], 500, DATA[500:]).status_code == 204
    assert tus.offset(tus.place(0, "empty")) == 0 and row.files.get(name="empty").complete


def test_a_file_whose_first_piece_fails_has_an_address_for_the_rest(tus: Tus, row: SaeImport) -> None:
    wrong = f"sha256 {base64.b64encode(bytes(32)).decode()}"
    answer = tus.create(len(DATA), data=DATA, Content_Type=PIECE, Upload_Checksum=wrong)
    assert (answer.status_code, answer["Upload-Offset"]) == (201, "0")
    assert tus.patch(str(answer["Location"]), 0, DATA).status_code == 204 and content(row) == DATA
    assert tus.create(5, "b.pt", DATA, Content_Type=PIECE).status_code == 413 and row.files.count() == 1


def test_what_is_too_large_for_the_import_the_quota_or_the_disk_is_refused_at_creation(tus: Tus, settings: Any) -> None:
    settings.UPLOAD_MAX_BYTES, settings.UPLOAD_QUOTA_BYTES = 1000, 1500
    answer = tus.create(1001)
    assert answer.status_code == 413 and "one import may have 1000 bytes here" in text(answer)
    tus.place(800)
    assert tus.create(300, "b").status_code == 413
    settings.UPLOAD_MAX_BYTES = 10_000
    answer = tus.create(800, "b")
    assert answer.status_code == 413 and "you have 800 bytes here" in text(answer).lower()
    settings.UPLOAD_RESERVE_BYTES = 1 << 60
    answer = tus.create(10, "c")
    assert answer.status_code == 507 and "free space" in text(answer) and UploadFile.objects.count() == 1


def test_a_disk_that_is_full_in_the_middle_keeps_what_came(
    tus: Tus, row: SaeImport, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, write = tus.place(), os.write

    def full(handle: int, data: Any) -> int:
        if os.fstat(handle).st_size >= 4000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data[:4000])

    monkeypatch.setattr(os, "write", full)
    answer = tus.patch(place, 0, DATA)
    assert answer.status_code == 507 and "what has arrived is kept" in text(answer)
    monkeypatch.undo()
    assert tus.offset(place) == 4000
    assert tus.patch(place, 4000, DATA[4000:]).status_code == 204 and content(row) == DATA


def test_names_that_meet_are_refused(tus: Tus) -> None:
    tus.place(name="sae/cfg.json")
    assert "there is a file called sae/cfg.json already" in text(tus.create(name="SAE/cfg.json")).lower()
    assert tus.create(name="sae").status_code == 409 and tus.create(name="sae/w.pt").status_code == 201


def test_a_file_is_taken_back_whole_or_not(tus: Tus, row: SaeImport) -> None:
    half, whole = tus.place(), tus.place(name="b")
    tus.patch(half, 0, DATA[:10])
    tus.patch(whole, 0, DATA)
    staged = receiving.staged(row.files.get(name="ae.pt"))
    for place in (half, whole):
        assert tus.send("DELETE", place).status_code == 204
        assert tus.send("HEAD", place).status_code == 404
    assert row.files.count() == 0 and not staged.exists()
    assert storage.current().names(receiving.folder(row)) == set()


def test_a_cancelled_import_takes_nothing_more(tus: Tus, row: SaeImport) -> None:
    place = tus.place()
    tus.patch(place, 0, DATA[:10])
    intake.cancel(row)
    assert tus.patch(place, 10, DATA[10:]).status_code == 410 and tus.send("HEAD", place).status_code == 410
    assert tus.create(name="b").status_code == 409 and limits.stored(row.owner) == 0
    assert not receiving.staged(row.files.get()).exists()


def test_another_persons_import_is_changed_by_no_method(tus: Tus, row: SaeImport, owner: User) -> None:
    place = tus.place()
    stranger = Tus(User.objects.create_user("stranger"), row)
    assert stranger.create().status_code == 403
    for method in ("HEAD", "PATCH", "DELETE", "POST"):
        answer = stranger.send(method, place, DATA, Upload_Offset="0")
        assert answer.status_code == 403, method
    assert tus.offset(place) == 0
    assert Tus(User.objects.create_user("staff", is_staff=True), row).offset(place) == 0


def test_a_file_of_another_import_is_not_there_either(tus: Tus, owner: User) -> None:
    other = Tus(owner, intake.open_import(owner))
    place = tus.place()
    assert other.send("HEAD", f"{other.files}/{place.rpartition('/')[2]}").status_code == 404


def test_a_session_needs_its_csrf_token_and_nobody_is_nobody(row: SaeImport, owner: User) -> None:
    client = Client(enforce_csrf_checks=True)
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
    assert client.post(f"/imports/{row.key}/files", headers=headers).status_code == 403
    client.force_login(owner)
    client.get("/upload")
    assert client.post(f"/imports/{row.key}/files", headers=headers).status_code == 403
    token = {"X-CSRFToken": client.cookies["csrftoken"].value}
    assert client.post(f"/imports/{row.key}/files", headers={**headers, **token}).status_code == 201


def test_a_method_may_be_named_in_a_header(tus: Tus) -> None:
    place = tus.place()
    assert tus.send("POST", place, DATA[:9], X_HTTP_Method_Override="PATCH", Upload_Offset="0", Content_Type=PIECE)
    assert tus.offset(place) == 9


def test_the_staged_file_follows_no_link(tus: Tus, row: SaeImport, tmp_path: Path) -> None:
    place = tus.place()
    staged = receiving.staged(row.files.get())
    staged.symlink_to(tmp_path / "elsewhere")
    assert tus.patch(place, 0, DATA).status_code == 503 and not (tmp_path / "elsewhere").exists()
