"""The settings of an SAE, for people and for programs: who may change it, and what becomes of its addresses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from browser import accounts
from sae_backend.models import DeletedSae, Run, Sae
from tests.browser import run_rows, sae_rows

pytestmark = pytest.mark.django_db(transaction=True)
CHANGES = ("rename", "about", "rerun", "delete")


@pytest.fixture
def owner() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def live(owner: User) -> sae_rows.Stats:
    return sae_rows.publish(sae_rows.new_sae("first", slug="first", owner=owner))


@pytest.fixture
def ada(client: Client, owner: User) -> Client:
    client.force_login(owner)
    return client


def at(stats: sae_rows.Stats, what: str = "") -> str:
    return f"/s/{stats.sae.public_id}{what}"


def test_only_its_owner_and_staff_may_change_an_sae(live: sae_rows.Stats) -> None:
    stranger, staff = Client(), Client()
    stranger.force_login(User.objects.create_user("eve"))
    staff.force_login(User.objects.create_user("root", is_staff=True))
    for client in (Client(), stranger):
        assert client.get(at(live, "/settings")).status_code == 403
        for change in CHANGES:
            assert client.post(at(live, f"/{change}"), {"name": "x", "confirm": "first"}).status_code == 403
            assert client.post(at(live, f"/{change}.json"), {"name": "x", "confirm": "first"}).status_code == 403
        assert client.post(at(live, "/runs/1/pin")).status_code == 403
    assert "not yours to change" in stranger.get(at(live, "/settings")).content.decode()
    assert staff.get(at(live, "/settings")).status_code == 200
    assert Sae.objects.get().name == "first" and Run.objects.get().pinned is False


def test_a_get_changes_nothing(ada: Client, live: sae_rows.Stats) -> None:
    for change in CHANGES:
        assert ada.get(at(live, f"/{change}")).status_code == 405


def test_a_renamed_sae_is_found_under_all_its_names(ada: Client, live: sae_rows.Stats) -> None:
    assert ada.post(at(live, "/rename"), {"name": "Second <b>"})["Location"] == at(live, "/settings")
    page = ada.get(at(live, "/settings")).content.decode()
    assert "Second &lt;b&gt;" in page and "formerly first" in page and "Second <b>" not in page
    for slug in ("first", "second-b"):
        assert ada.get(f"/s/{slug}/7?interval=2")["Location"] == at(live, "/7?interval=2")
    assert "Second &lt;b&gt;" in ada.get(at(live)).content.decode()


def test_what_is_said_of_an_sae_is_shown_and_escaped(ada: Client, live: sae_rows.Stats) -> None:
    before = ada.get(at(live))["ETag"]
    about = {"notes": "<script>alert(1)</script>", "licence": "MIT", "links": "https://example.org/a\nhttp://example.org/b"}
    ada.post(at(live, "/about"), about)
    response = ada.get(at(live))
    page = response.content.decode()
    assert "&lt;script&gt;alert(1)" in page and "<script>alert(1)" not in page and response["ETag"] != before
    assert 'href="https://example.org/a"' in page and "MIT" in page
    assert ada.get(at(live, ".json")).json()["about"]["links"] == ["https://example.org/a", "http://example.org/b"]


@pytest.mark.parametrize("link", ["javascript:alert(1)", "//evil", "http://[", "ftp://x"])
def test_a_link_that_is_no_web_address_is_refused_and_what_was_typed_stays(
    ada: Client, live: sae_rows.Stats, link: str
) -> None:
    response = ada.post(at(live, "/about"), {"links": link, "notes": "typed with care"})
    page = response.content.decode()
    assert response.status_code == 400 and "is no address of the web" in page and "typed with care" in page
    assert Sae.objects.get().about == {}


def test_another_run_is_asked_for_and_leads_to_its_job(ada: Client, live: sae_rows.Stats) -> None:
    dataset = sae_rows.dataset(live.sae.lm)
    response = ada.post(at(live, "/rerun"), {"dataset": dataset.pk, "dtype": "float32", "max_tokens": "16"})
    run = Run.objects.get(number=2)
    assert response["Location"] == f"/jobs/{run.pk}" and run.config["dtype"] == "float32" and run.tokens_total == 16
    page = ada.get(f"/jobs/{run.pk}").content.decode()
    assert "asked for by <b>ada</b>" in page
    assert ada.get(f"/jobs/{run.pk}.json").json()["asked_by"] == "ada"


def test_a_superseded_run_is_kept_let_go_and_dropped_and_its_address_says_so(
    ada: Client, live: sae_rows.Stats
) -> None:
    sae_rows.publish(live.sae)
    assert ada.post(at(live, "/runs/1/pin"))["Location"] == at(live, "/settings#runs")
    assert "kept for ever" in ada.get(at(live, "/settings")).content.decode()
    response = ada.post(at(live, "/runs/1/drop"))
    assert response.status_code == 409 and "let it go first" in response.content.decode()
    assert ada.get(at(live, "@r1"), headers={"sec-fetch-user": "?1"}).status_code == 200  # as a reader opens it
    ada.post(at(live, "/runs/1/unpin"))
    page = ada.get(at(live, "/settings")).content.decode()
    assert f"Links to {live.sae.public_id}@r1, which have been given out, will say that it was dropped" in page
    ada.post(at(live, "/runs/1/drop"))
    gone = ada.get(at(live, "@r1/7"))
    assert gone.status_code == 410 and "was dropped" in gone.content.decode()
    assert ada.get(at(live, "/7")).status_code == 200
    assert ada.post(at(live, "/runs/9/drop")).status_code == 404


def test_deleting_asks_for_the_name_and_leaves_every_address_saying_so(ada: Client, live: sae_rows.Stats) -> None:
    ada.post(at(live, "/rename"), {"name": "second"})
    wrong = ada.post(at(live, "/delete"), {"confirm": "first"})
    assert wrong.status_code == 400 and "This is not its name" in wrong.content.decode() and Sae.objects.count() == 1
    running = run_rows.computing(live.sae)
    gone = ada.post(at(live, "/delete"), {"confirm": "second"}, follow=True)
    assert gone.status_code == 410 and "This SAE was deleted" in gone.content.decode()
    addresses = ["", "/7", "@r1", "@r1/7", "/settings", ".json", "/latents.csv"]
    for address in [*(at(live, a) for a in addresses), "/s/first", "/s/second", f"/jobs/{running.pk}"]:
        assert ada.get(address, follow=True).status_code == 410, address
    assert ada.get(at(live, ".json")).json()["error"] == "deleted"
    assert live.sae.name not in ada.get("/").content.decode()
    assert DeletedSae.objects.get().runs == [live.run.pk, running.pk]


def test_a_deleted_sae_that_is_brought_in_again_is_at_all_its_addresses(ada: Client, live: sae_rows.Stats) -> None:
    ada.post(at(live, "/delete"), {"confirm": "first"})
    sae_rows.publish(sae_rows.new_sae("first", slug="other"))
    assert ada.get(at(live)).status_code == 200
    assert ada.get("/s/first")["Location"] == at(live)
    assert ada.get(at(live, "@r1")).status_code == 410  # what it had is gone, and no other run takes its number
    assert ada.get(at(live, "@r1/7.json")).json()["error"] == "dropped"
    assert ada.get(at(live, "@r2")).status_code == 200 and ada.get(at(live, "@r3")).status_code == 404


# ---- programs ----------------------------------------------------------------------------------------


@pytest.fixture
def program(owner: User) -> Client:
    _, key = accounts.new_token(owner, "test")
    return Client(enforce_csrf_checks=True, headers={"authorization": f"Bearer {key}"})


def post(client: Client, url: str, said: Any = None) -> Any:
    return client.post(url, json.dumps(said), content_type="application/json")


def test_programs_do_all_of_it_with_a_token(program: Client, live: sae_rows.Stats) -> None:
    assert post(program, at(live, "/rename.json"), {"name": "third"}).json()["sae"]["slug"] == "third"
    about = {"links": ["https://example.org"], "notes": None}
    assert post(program, at(live, "/about.json"), about).json()["sae"]["about"] == {"links": ["https://example.org"]}
    answer = post(program, at(live, "/rerun.json"), {"dataset": "moonlight"})
    assert answer.status_code == 202 and answer.json()["job"]["number"] == 2
    assert post(program, at(live, "/runs/1/pin.json")).json()["job"]["pinned"] is True
    assert post(program, at(live, "/runs/2/drop.json")).json()["message"] == "r2 is queued: cancel it first"
    assert post(program, at(live, "/delete.json"), {"confirm": "third"}).json() == {"deleted": live.sae.public_id}
    assert post(program, at(live, "/rename.json"), {"name": "x"}).status_code == 410


@pytest.mark.parametrize("body", ["{", "[]", "3", '"x"'])
def test_a_body_that_is_no_object_is_refused_with_a_sentence(program: Client, live: sae_rows.Stats, body: str) -> None:
    answer = program.post(at(live, "/rename.json"), body, content_type="application/json")
    assert answer.status_code == 409 and "JSON" in answer.json()["message"]


def test_fields_that_are_wrong_are_named(program: Client, live: sae_rows.Stats) -> None:
    answer = post(program, at(live, "/rerun.json"), {"dataset": "nowhere", "dtype": "int3"})
    assert answer.status_code == 400 and set(answer.json()["fields"]) == {"dataset", "dtype"}
    assert post(program, at(live, "/rename.json"), {"name": "x" * 300}).status_code == 400
