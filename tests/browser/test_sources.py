"""The pages of language models and data sets: listed, added, deleted; who may; and the same for programs."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from playwright.sync_api import expect

from browser import accounts
from sae_backend import additions, storage
from sae_backend.models import Addition, Dataset, LanguageModel, Run, SaeImport
from tests.backend import messages
from tests.browser import sae_rows

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from pytest_django.live_server_helper import LiveServer

pytestmark = pytest.mark.django_db(transaction=True)
LINES = b'{"text": "the moon"}\n'
State = Addition.State


@pytest.fixture(autouse=True)
def nothing_waits() -> None:
    messages.forget()


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def member(client: Client, ada: User) -> Client:
    client.force_login(ada)
    return client


@pytest.fixture
def program(ada: User) -> Client:
    key = accounts.new_token(ada, "tests")[1]
    return Client(enforce_csrf_checks=True, headers={"authorization": f"Bearer {key}"})


def get(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def text(name: str = "moon.jsonl", content: bytes = LINES) -> SimpleUploadedFile:
    return SimpleUploadedFile(name, content)


# ---- lists and pages -----------------------------------------------------------------------------------


def test_lists_and_pages_say_what_there_is(client: Client) -> None:
    published = sae_rows.publish()
    lm, dataset = published.sae.lm, published.run.dataset
    for url, shown in {
        "/models": ["GPT2LMHeadModel", f'href="/models/{lm.pk}"'],
        f"/models/{lm.pk}": [f'href="/s/{published.sae.public_id}"', f'href="/datasets/{dataset.pk}"'],
        "/datasets": ["moonlight", lm.name, f'href="/datasets/{dataset.pk}"'],
        f"/datasets/{dataset.pk}": [f'href="/s/{published.sae.public_id}"', dataset.sha256[:12]],
    }.items():
        page = get(client, url)
        assert all(words in page for words in shown), url
    [listed] = client.get("/models.json").json()["models"]
    assert (listed["saes"], listed["datasets"], listed["n_layers"]) == (1, 1, lm.n_layers)
    assert client.get(f"/models/{lm.pk}.json").json() == listed
    [listed] = client.get("/datasets.json").json()["datasets"]
    assert (listed["runs"], listed["n_documents"], listed["model"]) == (1, 4, lm.name)
    assert client.get(f"/datasets/{dataset.pk}.json").json() == listed


def test_nothing_yet(client: Client, member: Client) -> None:
    assert "none yet" in get(client, "/models") and "add one</a> first" in get(client, "/datasets")
    for url in ("/models/9", "/datasets/9", "/additions/9", "/models/9.json"):
        assert client.get(url).status_code == 404


def test_lists_cost_few_queries_however_long(client: Client) -> None:
    sae_rows.publish()
    for url in ("/models", "/datasets"):
        with CaptureQueriesContext(connection) as seen:
            get(client, url)
        assert len(seen) <= 3, url


def test_a_folder_of_the_server_is_for_staff_to_see(client: Client, member: Client) -> None:
    lm = sae_rows.language_model()
    LanguageModel.objects.update(source="/secret/folder")
    page = get(member, f"/models/{lm.pk}")
    assert "/secret" not in page and "a folder of the server" in page
    User.objects.update(is_staff=True)
    assert "/secret/folder" in get(member, f"/models/{lm.pk}")


# ---- adding --------------------------------------------------------------------------------------------


def test_whoever_is_not_logged_in_adds_nothing(client: Client) -> None:
    lm = sae_rows.language_model()
    asked = [("/models", {"hub": "a/b"}), ("/datasets", {"file": text(), "lm": lm.name}), ("/models.json", {})]
    for url, form in asked:
        response = client.post(url, form)
        assert response.status_code == 403 and "log in" in response.content.decode()
    assert not Addition.objects.exists() and messages.take() is None
    assert 'name="hub"' not in get(client, "/models") and 'type="file"' not in get(client, "/datasets")


def test_a_model_of_the_hub_is_left_to_a_worker(member: Client, ada: User) -> None:
    answer = member.post("/models", {"hub": "openai-community/gpt2", "revision": "main"})
    row = Addition.objects.get()
    assert answer["Location"] == f"/additions/{row.pk}" and messages.take() == ("add_source", [row.pk])
    assert (row.name, row.origin, row.owner, row.options) == ("gpt2", "hub", ada, {})  # not with the server's token
    page = get(member, f"/additions/{row.pk}")
    assert "waits for a worker" in page and "openai-community/gpt2 at main" in page and "data-poll" in page
    assert f"/additions/{row.pk}" in get(member, "/models") and "data-poll" in get(member, "/additions/model/live")


@pytest.mark.parametrize(
    ("form", "sentence"),
    [({}, "say where it is"), ({"hub": "a/b", "folder": "/x"}, ""), ({"hub": "../../etc"}, "is no name on the hub"),
     ({"hub": "a/b", "revision": "x y"}, "is no branch"), ({"hub": "a/b", "name": "gpt2-small"}, "is here already"),
     ({"folder": "/etc"}, "say where it is")],
)  # fmt: skip
def test_what_makes_no_sense_is_said_beside_the_field(member: Client, form: dict[str, str], sentence: str) -> None:
    sae_rows.language_model()
    response = member.post("/models", form)
    if sentence:
        assert response.status_code == 400 and sentence in response.content.decode()
        assert not Addition.objects.exists()
    else:  # the field of folders is not read where it is not offered
        assert Addition.objects.get().origin == "hub"


def test_folders_are_for_staff_and_below_the_roots_that_are_named(
    member: Client, settings: Any, tmp_path: Path
) -> None:
    root, outside = tmp_path / "models", tmp_path / "secret"
    (root / "gpt2").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    settings.SOURCE_ROOTS = [str(root)]
    assert "Folder of the server" not in get(member, "/models")
    assert member.post("/models", {"folder": str(root / "gpt2")}).status_code == 400
    User.objects.update(is_staff=True)
    assert "Folder of the server" in get(member, "/models")
    for path in (outside, root / ".." / "secret", root / "link", "gpt2", "/"):
        response = member.post("/models", {"folder": str(path)})
        assert response.status_code == 400 and "give an absolute path below" in response.content.decode(), path
    assert member.post("/models", {"folder": str(root / "gpt2")}).status_code == 302
    assert Addition.objects.get().origin == "folder"
    settings.SOURCE_ROOTS = []
    assert "Folder of the server" not in get(member, "/models")


def test_an_uploaded_text_is_stored_by_its_hash(member: Client, settings: Any) -> None:
    lm = sae_rows.language_model()
    form = {"file": text(), "lm": lm.name, "max_tokens": "500", "name": "moons"}
    answer = member.post("/datasets", form)
    row = Addition.objects.get()
    assert answer["Location"] == f"/additions/{row.pk}" and messages.take() == ("add_source", [row.pk])
    assert (row.origin, row.source, row.lm, row.text_bytes) == ("upload", "moon.jsonl", lm, len(LINES))
    assert row.options == {"max_tokens": 500}
    with storage.current().reading(f"texts/{row.text_sha256}") as folder:
        assert (folder / "text").read_bytes() == LINES
    additions.cancel(row)
    assert member.post(f"/additions/{row.pk}/forget")["Location"] == "/datasets"
    assert not storage.current().names(f"texts/{row.text_sha256}")


@pytest.mark.parametrize(
    ("name", "sentence"), [("a.docx", "is none of .txt"), ("../../a.py", "is none of .txt"), ("a.csv.gz", "is none of")]
)
def test_a_file_that_is_no_text_is_refused_by_its_name(member: Client, name: str, sentence: str) -> None:
    response = member.post("/datasets", {"file": text(name), "lm": sae_rows.language_model().name})
    assert response.status_code == 409 and sentence in response.content.decode()
    assert not Addition.objects.exists()


def test_a_name_that_climbs_is_only_a_name(member: Client) -> None:
    member.post("/datasets", {"file": text("../../../tmp/evil.txt"), "lm": sae_rows.language_model().name})
    row = Addition.objects.get()
    assert (row.source, row.name) == ("evil.txt", "evil.txt")


def test_a_proxys_own_password_makes_nobody_a_program(member: Client) -> None:
    for path in ("/models", "/datasets", "/imports/00000000-0000-0000-0000-000000000000/save"):
        answer = member.post(path, headers={"Authorization": "Basic eDp5"})
        assert answer["Content-Type"].startswith("text/html"), path


def test_the_name_of_a_file_may_be_longer_than_a_data_sets(member: Client) -> None:
    member.post("/datasets", {"file": text("m" * 240 + ".txt"), "lm": sae_rows.language_model().name})
    row = Addition.objects.get()
    assert (row.source, row.name) == ("m" * 240 + ".txt", "m" * 200)


def test_text_has_quotas(member: Client, settings: Any) -> None:
    lm, settings.TEXT_MAX_BYTES = sae_rows.language_model(), 1000
    before = len(storage.current().folders("texts"))
    send = lambda content: member.post("/datasets", {"file": text(content=content), "lm": lm.name}).content.decode()  # noqa: E731
    assert "may be uploaded" in send(b"x" * 1001)
    settings.TEXT_QUOTA_BYTES = 1500
    send(b"x" * 900)
    assert "are allowed: delete a data" in send(b"y" * 700)
    settings.MAX_OPEN_ADDITIONS = 1
    assert "at once" in send(b"z")
    assert Addition.objects.count() == 1 and len(storage.current().folders("texts")) == before + 1


def test_a_text_that_is_too_long_is_refused_before_it_is_read(program: Client, settings: Any) -> None:
    settings.TEXT_MAX_BYTES = 1000
    data = {"file": text(content=bytes(3 << 20)), "lm": sae_rows.language_model().name}
    answer = program.post("/datasets.json", data)
    assert answer.status_code == 413
    assert answer.json()["message"].startswith("this file has 2 MB and 1000 bytes may be uploaded: take a part")


def test_a_disk_that_is_full_is_a_sentence(program: Client) -> None:
    data = {"file": text(content=bytes(2 << 20)), "lm": sae_rows.language_model().name}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        answer = program.post("/datasets.json", data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.status_code == 507 and "no room for this now" in answer.json()["message"]
    assert not Addition.objects.exists()


def test_a_text_that_another_forgets_meanwhile_is_asked_for_again(tmp_path: Path) -> None:
    lm, path = sae_rows.language_model(), tmp_path / "moon.txt"
    path.write_bytes(b"a text of its own")
    sha256, size = additions.keep_text(path)
    additions.forget_text(sha256)
    with pytest.raises(additions.AdditionError, match="upload it again"):
        additions.ask("dataset", "upload", "moon", path.name, lm=lm, text_sha256=sha256, text_bytes=size)


def test_a_form_of_another_site_is_refused(ada: User) -> None:
    client, lm = Client(enforce_csrf_checks=True), sae_rows.language_model()
    client.force_login(ada)
    assert client.post("/models", {"hub": "a/b"}).status_code == 403
    assert client.post("/datasets", {"file": text(), "lm": lm.name}).status_code == 403
    assert not Addition.objects.exists()


def test_programs_add_with_a_token_and_json(program: Client) -> None:
    lm = sae_rows.language_model()
    answer = program.post("/models.json", json.dumps({"hub": "a/b", "name": "mine"}), content_type="application/json")
    assert answer.status_code == 202 and answer.json()["state"] == "queued" and answer.json()["name"] == "mine"
    url = answer.json()["url"]
    assert program.get(f"{url}.json").json() == answer.json()
    assert program.post("/datasets.json", {"file": text(), "lm": lm.name}).status_code == 202
    body = {"hub": "a/b", "lm": lm.name, "max_tokens": 10**12, "ctx_len": 10**6}
    wrong = program.post("/datasets.json", json.dumps(body), content_type="application/json")
    assert wrong.status_code == 400 and set(wrong.json()["fields"]) == {"max_tokens", "ctx_len"}
    for body in ("[1]", "{", "[" * 100_000):
        assert program.post("/models.json", body, content_type="application/json").status_code == 409
    assert program.post(f"{url}/cancel.json").json() == {"done": True}
    assert program.post(f"{url}/cancel.json").json() == {"done": False}
    assert program.post(f"{url}/again.json").json() == {"done": True}
    assert Addition.objects.get(name="mine").state == State.QUEUED


# ---- looking after -------------------------------------------------------------------------------------


def test_what_is_being_added_is_its_owners_and_staffs(member: Client, ada: User) -> None:
    eve = Client()
    eve.force_login(User.objects.create_user("eve"))
    row = additions.ask("model", "hub", "hers", "a/b", ada)
    assert "hers" in get(member, "/models")
    for other in (eve, Client()):
        assert "hers" not in get(other, "/models") and other.get("/models.json").json()["additions"] == []
        for rest in ("", ".json", "/live"):
            assert other.get(f"/additions/{row.pk}{rest}").status_code == 404
        for action in ("cancel", "again", "forget", "cancel.json"):
            assert other.post(f"/additions/{row.pk}/{action}").status_code == 404
    assert Addition.objects.get().state == State.QUEUED
    User.objects.filter(username="eve").update(is_staff=True)
    assert eve.post(f"/additions/{row.pk}/cancel").status_code == 302


def test_a_failure_is_shown_with_what_may_be_done(member: Client, ada: User) -> None:
    row = additions.ask("model", "hub", "hers", "a/b", ada)
    Addition.objects.update(state=State.FAILED, error="the hub has no <b>")
    page = get(member, f"/additions/{row.pk}")
    assert "The hub has no &lt;b&gt;" in page and "Try again" in page and "data-poll" not in page
    messages.forget()
    assert member.get(f"/additions/{row.pk}/again").status_code == 405
    member.post(f"/additions/{row.pk}/again")
    assert Addition.objects.get().state == State.QUEUED and messages.take() == ("add_source", [row.pk])
    assert "cancel it first" in member.post(f"/additions/{row.pk}/forget.json").json()["message"]


def test_what_is_used_is_not_deleted_and_what_is_not_goes(member: Client, ada: User) -> None:
    published = sae_rows.publish()
    lm, dataset = published.sae.lm, published.run.dataset
    for url in (f"/models/{lm.pk}", f"/datasets/{dataset.pk}"):
        assert member.post(f"{url}/delete").status_code == 403 and "Delete" not in get(member, url)
    LanguageModel.objects.update(owner=ada), Dataset.objects.update(owner=ada)
    for url, users in ((f"/models/{lm.pk}", "1 SAE, 1 data set"), (f"/datasets/{dataset.pk}", "1 run")):
        refused = member.post(f"{url}/delete")
        assert refused.status_code == 409 and f"is used by {users}" in refused.content.decode()
        assert users in get(member, url)
    failed = SaeImport.objects.create(name="x", source="/x", lm=lm, dataset=dataset, state="failed", error="why")
    published.sae.current_run = None
    published.sae.save()
    Run.objects.all().delete(), published.sae.delete()
    assert member.post(f"/datasets/{dataset.pk}/delete")["Location"] == "/datasets"
    assert member.post(f"/models/{lm.pk}/delete.json").json() == {"done": True}
    assert not LanguageModel.objects.exists() and not Dataset.objects.exists()
    failed.refresh_from_db()
    assert (failed.lm, failed.dataset) == (None, None)
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass(%s)", [f"context_d{dataset.pk}"])
        assert cursor.fetchone() == (None,)


def test_a_text_is_read_again_for_another_language_model(member: Client, ada: User) -> None:
    published = sae_rows.publish()
    dataset, other = published.run.dataset, LanguageModel.objects.get()
    other.pk, other.name, other.sha256 = None, "other", "f" * 64
    other.save()
    assert "another language model" not in get(member, f"/datasets/{dataset.pk}")  # its source was not kept
    refused = member.post(f"/datasets/{dataset.pk}/for", {"lm": "other"})
    assert refused.status_code == 409 and "before its source was kept" in refused.content.decode()
    recipe = {"origin": "hub", "source": "a/b", "revision": "c" * 40, "options": {"split": "train"}}
    Dataset.objects.update(recipe=recipe)
    page = get(member, f"/datasets/{dataset.pk}")
    assert "another language model" in page and ">other</option>" in page and f">{dataset.lm.name}</option>" not in page
    member.post(f"/datasets/{dataset.pk}/for", {"lm": "other"})
    row = Addition.objects.get()
    assert (row.lm, row.source, row.revision, row.options["split"]) == (other, "a/b", "c" * 40, "train")
    assert (row.name, row.owner) == (dataset.name, ada)


def test_a_text_in_a_folder_of_the_server_is_read_again_without_saying_where(member: Client, ada: User) -> None:
    published = sae_rows.publish()
    other = LanguageModel.objects.get()
    other.pk, other.name, other.sha256 = None, "other", "f" * 64
    other.save()
    Dataset.objects.update(recipe={"origin": "folder", "source": "/secret/text", "options": {"anywhere": True}})
    member.post(f"/datasets/{published.run.dataset.pk}/for", {"lm": "other"})
    row = Addition.objects.get()
    Addition.objects.update(state=State.FAILED, error="/secret/text/a.txt holds no text")
    pages = ["/datasets", "/datasets.json", *(f"/additions/{row.pk}{rest}" for rest in ("", ".json", "/live"))]
    for url in pages:
        page = get(member, url)
        assert "/secret" not in page and "of the server/a.txt holds no text" in page, url
    User.objects.update(is_staff=True)
    assert all("/secret/text/a.txt" in get(member, url) for url in pages)


# ---- seen ----------------------------------------------------------------------------------------------


@pytest.mark.browser
def test_a_data_set_is_added_on_a_narrow_screen_without_a_mouse(
    page: Page, live_server: LiveServer, settings: Any, tmp_path: Path
) -> None:
    settings.OPEN_TO_ALL = True
    sae_rows.publish()
    (tmp_path / "moon.jsonl").write_bytes(LINES)
    page.set_viewport_size({"width": 390, "height": 844})
    for url in ("/models", "/datasets", f"/models/{LanguageModel.objects.get().pk}"):
        page.goto(live_server.url + url)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, url
    page.goto(f"{live_server.url}/datasets")
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "moon.jsonl")
    page.get_by_role("button", name="Add the data set").press("Enter")
    page.get_by_role("heading", name="moon.jsonl").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    Addition.objects.update(state=State.FAILED, error="line 1 of moon.jsonl is not a JSON object")
    page.get_by_role("alert").wait_for()  # the page follows by itself
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
