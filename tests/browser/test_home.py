"""The home page: what it shows of SAEs in every state, and what it costs."""

from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from sae_backend import runs as states
from sae_backend.models import SaeImport
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db(transaction=True)


def get(client: Client, url: str = "/") -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def test_an_empty_site_says_so_and_where_a_failed_import_is_explained(client: Client) -> None:
    assert "No SAE has been loaded yet" in get(client)
    SaeImport.objects.create(name="x", source="/x", lm=sae_rows.language_model(), state="failed", error="why")
    page = get(client)
    assert "1 import failed" in page and 'href="/jobs"' in page
    assert client.get("/saes.json").json() == {"saes": []}


def test_a_ready_sae_is_listed_with_the_figures_of_its_run(client: Client) -> None:
    published = sae_rows.publish()
    page = get(client)
    for shown in (
        "gpt2-small",
        "blocks.1.hook_resid_post",
        "topk8-300",
        "TopK 8",
        "0.142",
        "8.2",
        "6.7\u202f%",
        "Ready",
    ):
        assert shown in page, shown
    (row,) = client.get("/saes.json").json()["saes"]
    assert row["id"] == published.sae.public_id and row["url"] == f"/s/{published.sae.public_id}"
    assert row["status"] == "ready" and row["dead"] == 20 and row["ce_recovered"] == 0.979
    assert set(row) >= {
        "name",
        "slug",
        "architecture",
        "d_in",
        "d_sae",
        "k",
        "hook_name",
        "model",
        "l0",
        "fvu",
    }


def test_waiting_computing_and_failed_saes_are_listed_as_such(client: Client) -> None:
    runs = {name: sae_rows.new_run(sae_rows.new_sae(name, slug=name)) for name in ("waits", "computes", "fails")}
    sae_rows.new_sae("imported-only", slug="imported-only")
    sae_rows.start(runs["computes"])
    sae_rows.do_contexts(runs["computes"], shards=1)
    sae_rows.start(runs["fails"])
    states.fail(runs["fails"].pk, "the text gives fewer than 16 tokens")
    status = {row["name"]: row["status"] for row in client.get("/saes.json").json()["saes"]}
    assert status == {
        "waits": "queued",
        "computes": "computing",
        "fails": "failed",
        "imported-only": "queued",
    }
    page = get(client)
    assert "Computing 40 %" in page and "Next in the queue" in page and "Failed" in page


def test_a_newer_run_leaves_a_ready_sae_ready(client: Client) -> None:
    published = sae_rows.publish()
    sae_rows.start(sae_rows.new_run(published.sae))
    assert client.get("/saes.json").json()["saes"][0]["status"] == "ready"


def test_two_saes_of_one_hook_point_make_a_frontier_whose_marks_are_links(client: Client) -> None:
    first = sae_rows.publish()
    assert "Frontier" not in get(client)
    second = sae_rows.publish(sae_rows.new_sae("other", slug="other"), sae_rows.FIGURES | {"l0": 32.0, "fvu": 0.098})
    page = get(client)
    for published in (first, second):
        assert f'class="pt k1" href="/s/{published.sae.public_id}"' in page
    assert "<b>0.098</b>" in page and "<b>0.142</b>" not in page


def test_a_box_to_tick_stands_before_no_name_or_leaves_its_place_before_all(client: Client) -> None:
    for name, ready in (("first", True), ("second", False), ("third", True)):
        page = get(client)
        assert 'class="tick"' not in page and 'id="cmp"' not in page
        sae = sae_rows.new_sae(name, slug=name)
        sae_rows.publish(sae) if ready else sae_rows.new_run(sae)
    page = get(client)
    assert len(re.findall('<input class="tick"', page)) == 2 and len(re.findall('<span class="tick">', page)) == 1
    assert "Tick two to compare" in page


def test_a_run_without_figures_is_listed_with_dashes(client: Client) -> None:
    sae_rows.publish(figures={})
    assert "—" in get(client)
    row = client.get("/saes.json").json()["saes"][0]
    assert row["fvu"] is None and row["l0"] is None and row["ce_recovered"] is None


def test_names_are_escaped(client: Client) -> None:
    name = "<script>alert(1)</script>\"'"
    sae = sae_rows.new_sae(name, slug="hostile", hook_name="<img src=x onerror=alert(2)>")
    sae_rows.new_run(sae)
    for url in ("/", "/jobs", f"/s/{sae.public_id}", "/jobs/live", "/jobs/running"):
        page = get(client, url)
        assert "<script>alert" not in page and "<img" not in page, url
    assert "&lt;script&gt;alert" in get(client)


def test_the_page_costs_as_many_queries_for_one_sae_as_for_five(client: Client) -> None:
    sae_rows.publish()
    with CaptureQueriesContext(connection) as one:
        get(client)
    for i in range(4):
        sae_rows.new_run(sae_rows.new_sae(f"sae {i}", slug=f"sae-{i}"))
    with CaptureQueriesContext(connection) as five:
        get(client)
    assert len(one) <= 7 and len(five) <= 9, [q["sql"][:80] for q in five]


def test_a_sweep_is_folded_but_for_its_best(client: Client) -> None:
    for i in range(10):
        figures = {**sae_rows.FIGURES, "fvu": 0.3 - 0.01 * i}
        sae_rows.publish(sae_rows.new_sae(f"sweep {i}", slug=f"sweep-{i}"), figures=figures)
    page = get(client)
    assert ">6</span> of 10 SAEs shown; sweeps are folded" in page and "show 4 more" in page
    folded = re.findall(r"<tr[^>]* data-folded>.*?>sweep (\d)<", page)
    assert folded == ["5", "6", "7", "8"]  # 9 has the lowest FVU
    assert "data-folded" not in get(client, "/?all=1")
    by_fvu = re.findall(r'class="name"[^>]*>sweep (\d)<', get(client, "/?all=1&sort=fvu"))
    assert by_fvu == list("9876543210")


def test_a_random_latent_of_any_sae(client: Client) -> None:
    assert client.get("/random").status_code == 404
    published = sae_rows.publish()
    assert client.get("/random")["Location"] == f"/s/{published.sae.public_id}/random"
