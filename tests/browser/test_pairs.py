"""Lists of pairs against all pairs that the stored neighbours have, and the page of one."""

from __future__ import annotations

import csv
import io
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from browser.queries import latent_filter, pair_list
from browser.queries.latents import stored
from browser.queries.pair_list import Choice
from browser.queries.saes import resolve
from sae_backend.packing import Neighbours
from tests.browser import latent_rows, sae_rows
from tests.browser.latent_rows import ALIVE, DEAD, Published
from tests.browser.sae_rows import D_SAE, Stats

pytestmark = pytest.mark.django_db(transaction=True)
LISTED = 10


@pytest.fixture(scope="module")
def cosines() -> np.ndarray[Any, Any]:
    """Of directions in five dimensions: many pairs beyond any bound, most in one of the two latents' lists only."""
    unit = np.random.default_rng(3).normal(size=(D_SAE, 5))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cos = (unit @ unit.T).astype(np.float32)
    np.fill_diagonal(cos, 0)
    return cos


@pytest.fixture
def published(cosines: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Stats:
    near, far = np.argsort(-cosines, 1, kind="stable"), np.argsort(cosines, 1, kind="stable")
    values = sae_rows.statistics(D_SAE)
    values |= {"nearest_cos": cosines.max(1).astype(float), "opposing_cos": cosines.min(1).astype(float)}

    def neighbours(i: int, n: int) -> Neighbours:
        a, b = near[i, :LISTED], far[i, :LISTED]
        return Neighbours(a.astype(np.uint32), cosines[i, a], b.astype(np.uint32), cosines[i, b])

    monkeypatch.setattr(sae_rows, "_neighbours", neighbours)
    monkeypatch.setattr(sae_rows, "statistics", lambda n, seed=0: values)
    return sae_rows.publish()


def expected(cosines: np.ndarray[Any, Any], side: str, bound: float) -> dict[frozenset[int], float]:
    """Every pair that either of its latents has in its list."""
    sign = 1 if side == "opposing" else -1
    lists = np.argsort(sign * cosines, 1, kind="stable")[:, :LISTED]
    return {frozenset((i, int(j))): float(cosines[i, j]) for i in range(D_SAE) for j in lists[i]
            if sign * cosines[i, j] <= sign * bound}  # fmt: skip


def walk(client: Client, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while url:
        data = client.get(url).json()
        assert data["ignored"] == []
        found += data["pairs"]
        url = data["next"]
    return found


@pytest.mark.parametrize(("side", "bound"), [("opposing", -0.9), ("opposing", -0.2), ("nearest", 0.95)])
def test_every_pair_is_listed_once_in_every_order(
    client: Client, published: Stats, cosines: np.ndarray[Any, Any], side: str, bound: float
) -> None:
    wanted, name = expected(cosines, side, bound), {"opposing": "below", "nearest": "above"}[side]
    assert len(wanted) > 20
    for sort in pair_list.SORTS:
        rows = walk(client, f"/s/{published.sae.public_id}/pairs.json?side={side}&{name}={bound}&sort={sort}")
        found = [frozenset((row["first"]["index"], row["second"]["index"])) for row in rows]
        assert len(found) == len(set(found)) and set(found) == set(wanted), sort
        assert all(row["cos"] == wanted[key] for row, key in zip(rows, found, strict=True))
        firsts = list(dict.fromkeys(row["first"]["index"] for row in rows))
        best = cosines.min(1) if side == "opposing" else -cosines.max(1)
        density = published.values["density"]
        key = {"cos": best, "index": np.arange(D_SAE), "density": density, "-density": -density}[sort]
        assert all(key[a] <= key[b] for a, b in pairwise(firsts)), sort


def test_a_pair_says_whether_each_is_the_others_best(
    client: Client, published: Stats, cosines: np.ndarray[Any, Any]
) -> None:
    far, mutual = cosines.argmin(1), 0
    for row in walk(client, f"/s/{published.sae.public_id}/pairs.json?below=-0.5"):
        a, b = row["first"]["index"], row["second"]["index"]
        assert row["mutual"] == (far[a] == b and far[b] == a)
        assert row["first"]["status"] == ["dead", "rare", "alive", "dense"][published.values["status"][a]]
        mutual += row["mutual"]
    assert mutual > 5


def test_the_table_of_pairs_is_the_whole_list(client: Client, published: Stats, cosines: np.ndarray[Any, Any]) -> None:
    response = client.get(f"/s/{published.sae.public_id}/pairs.csv?below=-0.6")
    rows = list(csv.DictReader(io.StringIO(b"".join(response.streaming_content).decode())))  # type: ignore[attr-defined]
    found = {frozenset((int(row["first_index"]), int(row["second_index"]))): float(row["cos"]) for row in rows}
    assert found == expected(cosines, "opposing", -0.6) and len(rows) == len(found)
    assert 'filename="topk8-300-r1-opposing-pairs.csv"' in response["Content-Disposition"]
    refused = client.get(f"/s/{published.sae.public_id}/pairs.csv?below=deep")
    assert refused.status_code == 400 and "below=deep" in refused.content.decode()


def test_the_page_of_pairs_says_how_many_there_are_and_how_many_chance_has(client: Client, published: Stats) -> None:
    page = client.get(f"/s/{published.sae.public_id}/pairs?below=-0.9").content.decode()
    assert f"<b>{int((published.values['opposing_cos'] <= -0.9).sum())}</b> of 300 latents" in page
    assert "random directions in 16 dimensions" in page and "CSV" in page
    odd = client.get(f"/s/{published.sae.public_id}/pairs?below=<b>&sort=x").content.decode()
    assert "Not understood" in odd and "&lt;b&gt;" in odd and "<b>&sort" not in odd
    empty = client.get(f"/s/{published.sae.public_id}/pairs?below=-1").content.decode()
    assert "No pair is as far as that" in empty
    assert f"/s/{published.sae.public_id}/pairs" in client.get(f"/s/{published.sae.public_id}").content.decode()


def test_a_page_of_pairs_takes_few_queries_whatever_the_bound(published: Stats) -> None:
    latent_filter.forget()
    for bound in (-0.95, -0.1):
        with CaptureQueriesContext(connection) as seen:
            found = pair_list.pairs(published.run, Choice(bound=bound))
        assert found.pairs and len(seen) < 9, [q["sql"][:80] for q in seen.captured_queries]


def test_a_run_of_before_packed_columns_lists_the_same_pairs(
    client: Client, published: Stats, cosines: np.ndarray[Any, Any]
) -> None:
    with connection.cursor() as cursor:
        cursor.execute("delete from latent_column where run_id = %s", [published.run.pk])
    latent_filter.forget()
    rows = walk(client, f"/s/{published.sae.public_id}/pairs.json?below=-0.8")
    found = {frozenset((row["first"]["index"], row["second"]["index"])) for row in rows}
    assert found == set(expected(cosines, "opposing", -0.8))


def test_both_sides_of_a_pair_stand_beside_each_other(client: Client) -> None:
    published = latent_rows.publish()
    page = client.get(pair(published, ALIVE, 10)).content.decode()
    assert page.count('class="ctx"') > 10 and "the other is its most opposing" in page
    assert f'href="{published.url(ALIVE)}' in page and f'href="{published.url(10)}' in page
    dead = client.get(pair(published, DEAD, 2)).content.decode()
    assert "It never fired, so there are no contexts" in dead
    data = client.get(pair(published, ALIVE, 10) + ".json").json()
    assert [one["index"] for one in data["latents"]] == [ALIVE, 10] and data["cos"] == pytest.approx(-0.426, abs=1e-3)


def pair(published: Published, first: int, second: int) -> str:
    return f"/s/{published.sae.public_id}/pairs/{first}-{second}"


def test_a_pair_has_the_sampled_tokens_on_which_both_fire(client: Client) -> None:
    published = latent_rows.publish()
    rows = walk(client, f"/s/{published.sae.public_id}/pairs.json?side=nearest&above=0.2")
    assert rows
    for row in rows:
        a, b = row["first"]["index"], row["second"]["index"]
        own = stored(resolve(published.sae.public_id), a)
        assert own.together is not None
        place = own.neighbours.nearest.tolist().index(b)
        assert row["both"] == own.together.nearest[place]
    assert any(row["both"] for row in rows)
    assert "tokens with both" in client.get(f"/s/{published.sae.public_id}/pairs?below=-0.2").content.decode()


def test_what_is_no_pair_says_so(client: Client) -> None:
    published = latent_rows.publish()
    same, beyond = client.get(pair(published, 3, 3)), client.get(pair(published, 3, 99))
    assert same.status_code == beyond.status_code == 404
    assert "two different latents" in same.content.decode() and "0 to 23" in beyond.content.decode()


def test_the_page_of_an_sae_draws_its_directions_beside_random_ones(client: Client, published: Stats) -> None:
    page = client.get(f"/s/{published.sae.public_id}").content.decode()
    published.run.refresh_from_db()
    live = published.values["firings"] > 0
    for name, drawn in published.run.summary["histograms"].items():
        counts, edges = np.histogram(published.values[name][live], len(drawn["counts"]))
        assert drawn["counts"] == counts.tolist(), name
        assert drawn["low"] == edges[0] and drawn["step"] == pytest.approx(edges[1] - edges[0])
    assert f"random {16 / (16 + live.sum() - 1):.3g}"[:12] in page and "Feature dimensionality" in page
    assert "compare it only between SAEs of one training recipe" in page
    assert '<span class="mut">(random ' in page
