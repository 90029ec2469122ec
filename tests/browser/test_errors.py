"""Addresses that name nothing: each says what it understood and what there is."""

from __future__ import annotations

import pytest
from django.test import Client

from sae_backend.models import Sae
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db


def missing(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 404, url
    return response.content.decode()


def test_an_unknown_id_names_the_closest(client: Client) -> None:
    near = sae_rows.new_sae("near", slug="near", sha256="abcdef12" + "0" * 56)
    sae_rows.new_sae("far", slug="far", sha256="f" * 64)
    page = missing(client, "/s/abcdef99")
    assert f'href="/s/{near.public_id}"' in page and "No SAE&#x27;s identity begins with abcdef99" in page
    assert "/s/ffffff" not in page


def test_an_id_that_two_saes_share_asks_for_more_digits(client: Client) -> None:
    for i in "12":
        sae_rows.new_sae(f"twin {i}", slug=f"twin-{i}", sha256="abcdef" + i * 58)
    page = missing(client, "/s/ABCDEF")
    assert "more than one SAE" in page and page.count('href="/s/abcdef') == 2


def test_an_sae_without_a_run_has_no_latents_yet(client: Client) -> None:
    sae = sae_rows.new_sae()
    page = missing(client, f"/s/{sae.public_id}/random")
    assert "not computed yet" in page and f'href="/s/{sae.public_id}"' in page
    assert client.get(f"/s/{sae.public_id}/3")["Location"] == f"/s/{sae.public_id}"  # shows the progress


def test_a_run_that_is_not_kept_names_those_that_are(client: Client) -> None:
    sae = sae_rows.new_sae()
    assert "has no run r7 whose pages are kept. Kept runs: none" in missing(client, f"/s/{sae.public_id}@r7")


@pytest.mark.django_db(transaction=True)
def test_an_index_beyond_the_last_gives_the_range_and_a_field(client: Client) -> None:
    published = sae_rows.publish()
    page = missing(client, f"/s/{published.sae.public_id}/31007")
    assert "There is no latent 31\u202f007 in this SAE" in page
    assert "topk8-300 has 300 latents, numbered 0 to 299" in page and 'max="299"' in page
    assert f'href="/s/{published.sae.public_id}/random"' in page
    wide = sae_rows.publish(sae_rows.new_sae("wide", slug="wide"))
    Sae.objects.filter(pk=wide.sae.pk).update(d_sae=400)
    page = missing(client, f"/s/{published.sae.public_id}/300")
    assert f'href="/s/{wide.sae.public_id}/300">300 of wide</a> exists, at the same hook point, among 400' in page
    data = client.get(f"/s/{published.sae.public_id}/300.json")
    assert data.status_code == 404 and data.json()["error"] == "latent out of range"
    assert "numbered 0 to 299" in data.json()["message"]


def test_an_unknown_address_repeats_it_escaped(client: Client) -> None:
    page = missing(client, "/nope/%3Cscript%3Ealert(1)%3C/script%3E")
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    assert client.get("/nope.json").json()["error"] == "not found"
    page = missing(client, "/jobs/9")
    assert "There is no job 9" in page and '<a href="/jobs">All jobs</a>' in page
    missing(client, "/s/no-such-name")
    missing(client, "/s/abc")


def test_a_fault_of_the_server_is_said_without_detail(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("browser.queries.sae_list.rows", broken)
    client.raise_request_exception = False
    for url in ("/", "/saes.json"):
        response = client.get(url)
        assert response.status_code == 500 and b"secret" not in response.content and b"server" in response.content
    assert "All SAEs" in client.get("/").content.decode()
