"""The search page: latents by token over all SAEs, whatever is called so, and what to do where nothing is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from browser.queries import latent_filter
from browser.queries import search as results
from sae_backend.models import Sae
from sae_backend.packing import unpack_vocabulary
from tests.browser import latent_rows, sae_rows
from tests.browser.sae_rows import WORDS, Stats

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine, no SAE is left out."""
    monkeypatch.setattr(results, "SECONDS", float("inf"))


@pytest.fixture
def two() -> tuple[Stats, Stats]:
    """Two SAEs at two hook points."""
    return sae_rows.publish(), sae_rows.publish(
        sae_rows.new_sae("wider", slug="wider", hook_name="blocks.0.hook_mlp_out", d_sae=500), seed=1
    )


def _found(client: Client, **query: Any) -> dict[str, Any]:
    return client.get("/search.json", query).json()


def _having(stats: Stats, word: str, lists: tuple[str, ...]) -> list[int]:
    """Latents that fired with a word in one of the lists, the largest activation first, from the table itself."""
    token = WORDS.index(b" " + word.encode())
    with connection.cursor() as cursor:
        cursor.execute(
            'select "index", strongest, promoted, max_act from latent where run_id = %s and status > 0', [stats.run.pk]
        )
        of = [({"strongest": strongest, "promoted": promoted}, top, i) for i, strongest, promoted, top in cursor]
    rows = [(top, i) for tokens, top, i in of if any(token in tokens[name] for name in lists)]
    return [i for _, i in sorted(rows, reverse=True)]


@pytest.mark.parametrize(("where", "word"), [("", "moon"), ("strongest", "moon"), ("promoted", "star"), ("", "star")])
def test_every_latent_of_a_token_is_found_and_the_saes_take_turns(
    client: Client, two: tuple[Stats, Stats], where: str, word: str
) -> None:
    expected = [_having(stats, word, (where,) if where else ("strongest", "promoted")) for stats in two]
    found, seen = _found(client, q=word, **{"in": where}), dict[str, list[int]]()
    assert found["number"] == sum(map(len, expected)) > 0
    in_turn = [stats.sae.public_id for stats in (two[1], two[0])]  # by hook point
    assert [hit["sae"] for hit in found["latents"]] == (in_turn * results.PAGE)[: results.PAGE]
    while True:
        for hit in found["latents"]:
            seen.setdefault(hit["sae"], []).append(hit["index"])
        if not found["next"]:
            break
        found = client.get(found["next"]).json()
    most = results.PAGE * results.DEEPEST
    assert sum(map(len, seen.values())) == min(most, sum(map(len, expected)))
    for stats, indices in zip(two, expected, strict=True):
        assert seen.get(stats.sae.public_id, []) == indices[: len(seen.get(stats.sae.public_id, []))]


def test_facets_count_what_choosing_them_lists(client: Client, two: tuple[Stats, Stats]) -> None:
    whole = _found(client, q="moon")["number"]
    html = client.get("/search", {"q": "moon"}).content.decode()
    chips = re.findall(r'<a class="chip" href="(\?[^"]+)">(\S+) <span class="mut">([\d\s\u202f]+)</span>', html)
    assert {name for _, name, _ in chips} >= {"blocks.0.hook_mlp_out", "blocks.1.hook_resid_post", "alive"}
    by_hook = [int(n) for _, name, n in chips if name.startswith("blocks.")]
    assert sum(by_hook) == whole
    for query, name, n in chips:
        if name != "dead":
            assert client.get("/search.json" + query.replace("&amp;", "&")).json()["number"] == int(n), name


def test_a_run_without_packed_columns_is_searched_in_its_table(client: Client, two: tuple[Stats, Stats]) -> None:
    before = _found(client, q="moon")
    with connection.cursor() as cursor:
        cursor.execute("delete from latent_column")
    latent_filter.forget()
    assert _found(client, q="moon") == before


def test_names_hashes_models_and_data_sets_are_found(client: Client, two: tuple[Stats, Stats]) -> None:
    [named] = _found(client, q="wider")["named"]
    assert named["url"] == f"/s/{two[1].sae.public_id}"
    assert two[0].sae.name in [n["name"] for n in _found(client, q=two[0].sae.sha256[:4])["named"]]
    assert [n["what"] for n in _found(client, q="gpt2-sm")["named"]] == ["language model, GPT2LMHeadModel"]
    assert "data set" in [n["what"] for n in _found(client, q="moonli")["named"]]
    assert len(_found(client, q="blocks.0")["named"]) == 1


def test_what_is_found_nowhere_is_said_with_what_to_do(client: Client, two: tuple[Stats, Stats]) -> None:
    html = client.get("/search", {"q": "<moo"}).content.decode()
    assert "Nothing here is called “&lt;moo”" in html and "<moo" not in html
    html = client.get("/search", {"q": "a mo ti"}).content.decode()
    assert re.search(r'href="\?q=%22\+moon%22"', html) and "tide" in html
    close = two[0].sae.sha256[:5] + ("0" if two[0].sae.sha256[5] != "0" else "1") + "fff"
    assert two[0].sae.public_id in client.get("/search", {"q": close}).content.decode()
    assert "but of which SAE?" in client.get("/search", {"q": "17"}).content.decode()
    assert client.get("/search").status_code == 200


def test_odd_addresses_of_a_search_are_no_errors(client: Client, two: tuple[Stats, Stats]) -> None:
    for query in ("q=moon&page=99999999999", "q=moon&page=-1", "q=%00", "q=moon&in=x&status=y&model=%00&hook=z",
                  "q=" + "m" * 5000, "q=%22%22", "q=+", "q=%F0%9F", "page=3"):
        assert client.get(f"/search?{query}").status_code == 200, query
        assert client.get(f"/search.json?{query}").status_code == 200, query


def test_a_search_asks_few_questions(client: Client, two: tuple[Stats, Stats]) -> None:
    client.get("/search", {"q": "moon"})
    with CaptureQueriesContext(connection) as seen:
        client.get("/search", {"q": "moon"})
    assert len(seen) <= 4 + 2 * len(two), [q["sql"][:80] for q in seen]


def test_latents_are_shown_with_a_context_and_why(client: Client) -> None:
    published = latent_rows.publish()
    html = client.get("/search", {"q": "moon"}).content.decode()
    assert f'href="/s/{published.sae.public_id}/0"' in html and html.count('<li class="hit">') == 23
    assert 'class="l8 pk' in html and "fires on" in html and f"/{latent_rows.DEAD}\"" not in html


def test_tokens_that_begin_so_come_shortest_first() -> None:
    from browser.token_search import beginning
    from browser.tokens import Vocabulary
    from sae_backend.packing import pack_vocabulary

    entries = [b" moonlight", b"moo", b" Moon", b"amoon", b"moons", b""]
    words = Vocabulary(*unpack_vocabulary(pack_vocabulary(entries, [False] * len(entries))))
    assert beginning(words, "moo", 9) == (1, 2, 4, 0) and beginning(words, "moo", 2) == (1, 2)
    assert beginning(words, " ", 9) == ()


def test_a_million_latents_are_searched_in_one_pass_each() -> None:
    """Whatever their number: the first by largest activation among those that have the token, and counts by status."""
    rng = np.random.default_rng(0)
    n, key = 20_000, (-1, "max_act")
    tops, status = rng.random(n), rng.integers(1, 4, n).astype(np.int8)
    tops[:50] = np.nan
    lists = rng.integers(0, 90, (3, n)).astype(np.int32)
    latent_filter._columns.update({key: tops, (-1, "status"): status, (-1, "strongest"): lists})
    try:
        hits = latent_filter.with_token(-1, ["strongest"], [7, 8], [2, 3], 30)
    finally:
        latent_filter.forget()
    has = np.isin(lists, [7, 8]).any(0) & ~np.isnan(tops)
    assert hits and hits.counts == [int((has & (status == s)).sum()) for s in range(4)]
    chosen = np.flatnonzero(has & (status > 1))
    assert hits.indices == chosen[np.argsort(-tops[chosen])][:30].tolist()


def test_a_latents_layer_is_said(client: Client, two: tuple[Stats, Stats]) -> None:
    Sae.objects.update(hook_name="blocks.11.hook_mlp_out")
    assert "gpt2-small L11, " in client.get("/search?q=moon").content.decode()
    Sae.objects.update(hook_name="ln_final.hook_normalized")
    assert "gpt2-small, " in client.get("/search?q=moon").content.decode()


@pytest.mark.browser
def test_the_jump_box_leads_to_the_search_and_keys_open_what_it_found(
    page: Page, live_server: object, two: tuple[Stats, Stats]
) -> None:
    page.goto(f"{live_server}/")
    page.keyboard.press("/")
    page.keyboard.type("moon\n")
    page.wait_for_url("**/search?q=moon")
    second = page.locator(".hit a.t").nth(1).get_attribute("href")
    for key in ("j", "j", "Enter"):
        page.keyboard.press(key)
    page.wait_for_url(f"**{second}")
