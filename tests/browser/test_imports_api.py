"""Imports by forms and by JSON: begun, checked, started, seen and refused, each with a sentence."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.http import HttpResponse
from django.test import Client

from browser import accounts
from sae_backend import intake, storage
from sae_backend.intake import limits
from sae_backend.intake.receiving import folder, incoming
from sae_backend.models import SaeImport, UploadFile
from tests.backend import messages
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db(transaction=True)
State = SaeImport.State


@pytest.fixture(autouse=True)
def quiet() -> None:
    messages.forget()


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("owner")


@pytest.fixture
def api(owner: User) -> Client:
    return program(owner)


def program(user: User) -> Client:
    """A client with a token of this user's, for which CSRF is no matter."""
    key = accounts.new_token(user, "tests")[1]
    return Client(enforce_csrf_checks=True, headers={"Authorization": f"Bearer {key}"})


def a_file(name: str = "ae.pt", data: bytes = b"weights") -> SimpleUploadedFile:
    return SimpleUploadedFile(name, data)


def post(client: Client, path: str, data: Any) -> HttpResponse:
    return client.post(path, json.dumps(data), content_type="application/json")  # type: ignore[return-value]


def told(answer: Any) -> dict[str, Any]:
    return dict(json.loads(answer.content))


def test_files_and_choices_of_one_request_are_an_import_on_its_way(api: Client, owner: User) -> None:
    lm = sae_rows.language_model()
    fields = {"name": "mine", "lm": lm.name, "hook_name": "blocks.1.hook_resid_post", "k": "8", "max_tokens": "1000"}
    answer = api.post("/api/imports", {**fields, "file": [a_file(), a_file("cfg.json", b"{}")]})
    assert answer.status_code == 202, answer.content
    said, row = told(answer), SaeImport.objects.get()
    assert (row.owner, row.name, row.lm, row.max_tokens, row.go_on) == (owner, "mine", lm, 1000, True)
    assert row.options == {"hook_name": "blocks.1.hook_resid_post", "k": 8} and row.state == State.CHECKING
    assert said["url"] == f"/imports/{row.key}" and said["state"] == "checking" and said["owner"] == "owner"
    assert [(f["name"], f["size"], f["complete"]) for f in said["files"]] == [("ae.pt", 7, True), ("cfg.json", 2, True)]
    assert messages.take() == ("check_import", [row.pk])
    assert not list(incoming().glob("form-*"))  # linked, not copied
    assert told(api.get(said["json"])) == {**said, "expires_at": said["expires_at"]}
    assert [each["key"] for each in told(api.get("/imports.json"))["imports"]] == [str(row.key)]


def test_an_id_of_the_hub_is_enough(api: Client) -> None:
    answer = post(api, "/api/imports", {"hub": "me/saes@main:layer_5", "ask": True})
    row = SaeImport.objects.get()
    assert answer.status_code == 202 and told(answer)["hub"] == "me/saes@main:layer_5"
    assert row.from_hub and not row.go_on and messages.take() == ("check_import", [row.pk])


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        ({}, 400, "Send files"),
        ({"hub": "nonsense"}, 400, "no id of the hub"),
        ({"hub": "a/b", "lm": "unknown"}, 400, "There is no language model called 'unknown' here; there are: none"),
        ({"hub": "a/b", "options": {"colour": 1}}, 400, "There is no option 'colour'"),
        ({"hub": "a/b", "k": "many"}, 400, "K is a number"),
        ({"hub": "a/b", "k": "9" * 400}, 400, "K is a number"),
        ({"hub": "a/b", "input_scale": "nan"}, 400, "Input_scale is a number"),
        ({"hub": "a/b", "architecture": "magic"}, 400, "Architecture is one of"),
        ({"hub": "a/b", "options": "x"}, 400, "Options is an object"),
        ({"hub": "a/b", "max_tokens": -5}, 400, "Max_tokens is a number of tokens"),
        ({"hub": "a/b", "max_tokens": 0}, 400, "above 0"),
        ({"hub": "a/b", "series": "mine"}, 400, "Give the step too"),
        ({"hub": "a/b", "step": 5}, 400, "Give the series too"),
        ({"hub": "a/b", "series": "mine", "step": "five"}, 400, "Step is a whole number"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_sentence_and_leaves_nothing(
    api: Client, data: dict[str, Any], status: int, words: str
) -> None:
    answer = post(api, "/api/imports", data)
    assert answer.status_code == status and words in told(answer)["message"]
    assert not SaeImport.objects.exclude(state=State.CANCELLED).exists() and messages.take() is None
    assert api.post("/api/imports", "[1]", content_type="application/json").status_code == 400
    assert api.post("/api/imports", "{", content_type="application/json").status_code == 400


def test_series_and_step_are_those_said_or_told_by_names(api: Client) -> None:
    for said, expected in (
        ({}, ("topk", 500)), ({"series": "mine"}, ("mine", 500)), ({"step": 7}, ("topk", 7)),
        ({"series": "mine", "step": "0"}, ("mine", 0)),
    ):  # fmt: skip
        answer = told(post(api, "/api/imports", {"hub": "me/saes@main:topk/step_500", **said}))
        assert (answer["series"], answer["step"]) == expected, said
        row = SaeImport.objects.latest("pk")
        assert (row.series, row.step) == (said.get("series", ""), int(said["step"]) if "step" in said else None)
    assert told(post(api, "/api/imports", {"hub": "me/saes"}))["step"] is None


def test_an_import_whose_choices_are_refused_is_not_left_open(api: Client) -> None:
    sae_rows.dataset(lm := sae_rows.language_model())
    body = {"hub": "a/b", "lm": lm.name, "k": "many"}
    answer = post(api, "/imports", body)
    assert answer.status_code == 400 and "K is a number" in told(answer)["message"]
    assert not SaeImport.objects.exclude(state=State.CANCELLED).exists()


def test_nobody_uploads_and_a_stranger_reads_but_changes_nothing(api: Client, owner: User) -> None:
    nobody = Client(enforce_csrf_checks=True)
    assert nobody.post("/api/imports", {"file": a_file()}).status_code == 403
    row = intake.open_import(owner)
    stranger = program(User.objects.create_user("stranger"))
    for action in ("check", "start", "cancel", "save", "files", "files/form"):
        for client in (stranger, nobody):
            answer = client.post(f"/imports/{row.key}/{action}", headers={"Accept": "application/json"})
            assert answer.status_code == 403, action
            assert client is nobody or "Only who began this import" in told(answer)["message"]
    for client in (stranger, nobody, api):
        assert {client.get(f"/imports/{row.key}{form}").status_code for form in ("", ".json", "/live")} == {200}
    row.refresh_from_db()
    assert row.state == State.RECEIVING
    assert program(User.objects.create_user("staff", is_staff=True)).post(f"/imports/{row.key}/save").status_code == 200


def test_a_list_of_ones_own_is_for_who_can_have_any(api: Client) -> None:
    SaeImport.objects.create(name="of the shell", source="/srv/sae")
    nobody = Client()
    assert nobody.get("/imports.json").status_code == 403
    assert "of the shell" not in nobody.get("/upload").content.decode()
    assert told(api.get("/imports.json")) == {"imports": []}


def test_where_the_site_is_open_everybody_uploads(settings: Any) -> None:
    settings.OPEN_TO_ALL = True
    answer = Client().post("/api/imports", {"file": a_file()})
    assert answer.status_code == 202 and SaeImport.objects.get().owner is None


def test_a_form_without_scripts_begins_adds_and_cancels(owner: User) -> None:
    client = Client()
    client.force_login(owner)
    answer = client.post("/imports", {"name": "mine", "file": a_file("../x.pt")})
    row = SaeImport.objects.get()
    assert answer.status_code == 302 and answer["Location"] == f"/imports/{row.key}"
    assert client.post(f"/imports/{row.key}/files/form", {"file": [a_file("a"), a_file("b")]}).status_code == 302
    assert set(row.files.values_list("name", flat=True)) == {"x.pt", "a", "b"}
    assert client.post(f"/imports/{row.key}/files/{row.files.get(name='a').key}").status_code == 302
    assert row.files.count() == 2 and len(storage.current().names(folder(row))) == 2
    empty = client.post(f"/imports/{row.key}/files/form")
    assert empty.status_code == 400 and b"Choose at least one file." in empty.content
    assert client.post(f"/imports/{row.key}/cancel").status_code == 302
    row.refresh_from_db()
    assert row.state == State.CANCELLED and storage.current().names(folder(row)) == set()


def test_a_form_needs_its_csrf_token_and_leaves_no_bytes_without(owner: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    answer = client.post("/imports", {"file": a_file()})
    assert answer.status_code == 403 and b"It is not known who asks for this" in answer.content
    answer = client.post("/api/imports", {"file": a_file()})
    assert answer.status_code == 403 and "Authorization: Bearer TOKEN" in told(answer)["message"]
    assert not SaeImport.objects.exists() and not list(incoming().glob("form-*"))


def test_a_body_that_is_too_long_is_refused_before_it_is_read(api: Client, settings: Any) -> None:
    settings.UPLOAD_MAX_BYTES = 10
    answer = api.post("/api/imports", {"file": a_file(data=bytes(2 << 20))})
    assert answer.status_code == 413 and told(answer)["message"] == "One import may have 10 bytes here."
    assert api.post("/api/imports", {"file": a_file(data=bytes(11))}).status_code == 413
    assert not UploadFile.objects.filter(kept=True).exists()
    settings.UPLOAD_MAX_BYTES, settings.UPLOAD_RESERVE_BYTES = 10_000, 1 << 60
    answer = api.post("/api/imports", {"file": a_file()})
    assert answer.status_code == 507 and "free space" in told(answer)["message"]


def test_a_person_has_so_many_imports_at_once_in_an_hour_and_bytes(api: Client, settings: Any, owner: User) -> None:
    settings.MAX_OPEN_IMPORTS = 1
    assert post(api, "/imports", {"name": "one"}).status_code == 201
    answer = post(api, "/imports", {})
    assert answer.status_code == 429 and "finish or cancel one" in told(answer)["message"]
    intake.cancel(SaeImport.objects.get())
    settings.UPLOADS_PER_HOUR = 2
    assert post(api, "/imports", {}).status_code == 201
    settings.MAX_OPEN_IMPORTS = 9
    assert "within an hour" in told(post(api, "/imports", {}))["message"]
    settings.UPLOADS_PER_HOUR, settings.UPLOAD_QUOTA_BYTES = 99, 10
    assert api.post("/api/imports", {"file": a_file(data=bytes(8))}).status_code == 202
    answer = api.post("/api/imports", {"file": a_file(data=bytes(8))})
    assert answer.status_code == 413 and "delete an SAE or cancel an import" in told(answer)["message"]
    assert limits.stored(owner) == 8
    other = program(User.objects.create_user("other"))
    assert other.post("/api/imports", {"file": a_file(data=bytes(8))}).status_code == 202


def test_nothing_is_checked_before_it_has_arrived_nor_started_before_it_is_checked(api: Client, owner: User) -> None:
    row = intake.open_import(owner)
    address = f"/imports/{row.key}"
    assert "there are no files" in told(post(api, f"{address}/check", {}))["message"].lower()
    intake.add_file(row, "ae.pt", 100)
    assert "ae.pt has not arrived yet" in told(post(api, f"{address}/check", {}))["message"].lower()
    assert post(api, f"{address}/start", {"lm": sae_rows.language_model().name}).status_code == 409
    assert "choose the language model" in told(post(api, f"{address}/start", {"lm": ""}))["message"].lower()


def test_a_dataset_must_be_of_the_language_model_and_brings_its_own(api: Client, owner: User) -> None:
    row, lm = intake.open_import(owner), sae_rows.language_model()
    dataset, other = sae_rows.dataset(lm), sae_rows.language_model("other")
    address = f"/imports/{row.key}/save"
    assert told(post(api, address, {"dataset": dataset.name}))["lm"]["name"] == lm.name
    said = told(post(api, address, {"lm": other.name, "dataset": dataset.pk}))
    assert "no dataset that is ready" in said["message"] and dataset.name not in said["message"].split("there are")[1]
    assert told(post(api, address, {"lm": other.name}))["dataset"] is None


def test_a_checksum_is_for_one_file_and_looked_at(api: Client) -> None:
    assert api.post("/api/imports", {"file": a_file(), "sha256": "abc"}).status_code == 400
    assert api.post("/api/imports", {"file": a_file(), "sha256": "A" * 64}).status_code == 202
    assert UploadFile.objects.get(kept=True).expected_sha256 == "a" * 64


def test_strangers_names_are_text_on_every_page(owner: User, tmp_path: Path) -> None:
    client = Client()
    client.force_login(owner)
    evil = "<script>alert(1)</script>"
    row = intake.open_import(owner, evil)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(f"../{evil}", b"x")
    intake.receive(row, f"{evil}.zip", tmp_path / "a.zip")
    intake.check(row)
    messages.carry_out()
    for page in (f"/imports/{row.key}", "/upload", "/jobs", "/"):
        assert b"<script>alert" not in client.get(page).content, page
