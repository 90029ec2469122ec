"""The page of two SAEs beside each other: choosing, asking, thresholds in the address, lists, files, and what leads
there."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import expect

from browser.queries import compare_classes
from browser.queries.compare import Metric
from sae_backend import comparisons, managing
from sae_backend.core import matching
from sae_backend.models import Comparison, Run, Sae
from tests.backend import messages
from tests.browser import compare_rows, sae_rows
from tests.browser.compare_rows import CHILDREN, FIRST, N_LARGE, N_SMALL, SHARED, SPLIT
from tests.looking import Looking

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def pair() -> tuple[Sae, Sae]:
    messages.forget()
    return compare_rows.saes()


@pytest.fixture
def compared(pair: tuple[Sae, Sae]) -> tuple[Sae, Sae]:
    compare_rows.done(*pair)
    return pair


def at(pair: tuple[Sae, Sae], more: str = "", how: str = "") -> str:
    return f"/compare{how}?a={pair[0].public_id}&b={pair[1].public_id}{more}"


def classes(client: Client, pair: tuple[Sae, Sae], more: str = "") -> dict[str, tuple[int, int]]:
    found = client.get(at(pair, more, ".json")).json()["classes"]
    return {name: (x["a"]["latents"], x["b"]["latents"]) for name, x in found.items()}


def test_what_was_planted_is_counted_both_ways(client: Client, compared: tuple[Sae, Sae]) -> None:
    only = N_SMALL - FIRST - SHARED - SPLIT, N_LARGE - FIRST - SHARED - SPLIT * CHILDREN
    expected = {"matched": (SHARED, SHARED), "split": (SPLIT, SPLIT * CHILDREN), "merged": (0, 0), "related": (0, 0)}
    assert classes(client, compared) == expected | {"novel": only}
    turned = compared[1], compared[0]
    swapped = classes(client, turned)
    assert swapped["novel"] == only[::-1] and swapped["split"] == expected["split"][::-1]
    found = client.get(at(compared, "", ".json")).json()
    assert found["dead"] == {"a": FIRST, "b": FIRST}
    assert sum(found["histogram"]["a"]["counts"]) == N_SMALL - FIRST
    shares = [x["a"]["of_firing"] for x in found["classes"].values()]
    assert sum(shares) == pytest.approx(1)


def test_thresholds_are_in_the_address_and_change_the_classes(client: Client, compared: tuple[Sae, Sae]) -> None:
    apart = classes(client, compared, "&near=0.85")
    assert apart["split"] == (0, 0) and apart["novel"][0] == N_SMALL - FIRST - SHARED
    page = client.get(at(compared, "&near=0.85&match=0.95&tab=only-b")).content.decode()
    assert 'value="0.85"' in page and 'value="0.95"' in page and "near=0.85" in page
    nonsense = client.get(at(compared, "&near=2&match=x&tab=no&sort=no&after=no"))
    assert nonsense.status_code == 200 and 'value="0.7"' in nonsense.content.decode()


def test_classes_are_told_once_for_the_same_thresholds_and_again_for_another_attempt(
    client: Client, compared: tuple[Sae, Sae], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, classify = [], matching.classify

    def counted(*given: Any) -> Any:
        told.append(given[2:])
        return classify(*given)

    monkeypatch.setattr(matching, "classify", counted)
    first = client.get(at(compared, "&tab=split", ".json")).json()
    assert client.get(at(compared, "&tab=split", ".json")).json() == first
    assert client.get(at(compared, "&tab=only-a", ".json")).json()["classes"] == first["classes"] and len(told) == 1
    assert classes(client, compared, "&near=0.95")["split"] == (0, 0) and told[1:] == [(0.9, 0.95)]
    row = Comparison.objects.get()
    Comparison.objects.update(attempts=row.attempts + 1, a_cos=bytes(len(row.a_cos or b"")))  # other cosines: all 0
    assert classes(client, compared)["novel"][0] == N_SMALL - FIRST - SPLIT and len(told) == 3
    for near in (0.1, 0.2, 0.3, 0.4, 0.5):
        classes(client, compared, f"&near={near}")
    assert len(compare_classes._views) == compare_classes.KEPT


def test_lists_are_paged_by_key_in_any_order(client: Client, compared: tuple[Sae, Sae]) -> None:
    for tab, n in (("matched", SHARED), ("split", SPLIT), ("only-b", N_LARGE - FIRST - SHARED - SPLIT * CHILDREN)):
        for sort in ("", "density", "-together", "index", "-index", "-cos"):
            seen, after = list[int](), ""
            while True:
                found = client.get(at(compared, f"&tab={tab}&sort={sort}&after={after}", ".json")).json()["list"]
                seen += [line["first"]["index"] for line in found["lines"]]
                after = found["next"]
                if not after:
                    break
            assert len(seen) == len(set(seen)) == n == found["total"], (tab, sort)
            if sort == "index":
                assert seen == sorted(seen)


def test_a_parent_stands_beside_its_children_with_links_into_both(client: Client, compared: tuple[Sae, Sae]) -> None:
    found = client.get(at(compared, "&tab=split", ".json")).json()["list"]
    first = found["lines"][0]
    assert first["first"]["sae"] == "a" and first["first"]["class"] == "split"
    place = first["first"]["index"] - FIRST - SHARED
    begin = FIRST + SHARED + CHILDREN * place
    assert sorted(x["index"] for x in first["others"]) == list(range(begin, begin + CHILDREN))
    assert all(x["cos"] == pytest.approx(0.8, abs=1e-5) for x in first["others"])
    page = client.get(at(compared, "&tab=split")).content.decode()
    small, large = compared
    assert f"/s/{small.public_id}/{first['first']['index']}" in page and f"/s/{large.public_id}/{begin}" in page


def test_every_latent_is_in_the_csv(client: Client, compared: tuple[Sae, Sae]) -> None:
    text = b"".join(client.get(at(compared, "", ".csv")).streaming_content).decode()  # type: ignore[attr-defined]
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == N_SMALL + N_LARGE
    row = rows[FIRST]
    assert (row["sae"], row["class"], row["best"], row["mutual"], row["cos"]) == (
        "a", "matched", str(FIRST), "1", "1.0",
    )  # fmt: skip
    assert [r["class"] for r in rows].count("split") == SPLIT * (1 + CHILDREN)


def test_better_and_worse_are_said_in_words(client: Client, compared: tuple[Sae, Sae]) -> None:
    said = {m["name"]: m["b_is"] for m in client.get(at(compared, "", ".json")).json()["metrics"]}
    assert (said["FVU"], said["L0"], said["d_sae"]) == ("better", None, None)
    page = client.get(at((compared[1], compared[0]))).content.decode()
    assert "worse" in page and "Swap A and B" in page


# ---- before there is one ----


def test_a_member_asks_for_it_once_and_sees_its_progress(client: Client, pair: tuple[Sae, Sae]) -> None:
    page = client.get(at(pair)).content.decode()
    assert "Log in to have them compared" in page and "Not compared yet" in page
    assert client.post("/compare", {"a": pair[0].public_id, "b": pair[1].public_id}).status_code == 403
    assert not Comparison.objects.exists()
    client.force_login(User.objects.create_user("ada"))
    assert "Compare them" in client.get(at(pair)).content.decode()
    answer = client.post("/compare", {"a": pair[1].public_id, "b": pair[0].public_id, "near": "0.6"})
    assert answer["Location"] == at((pair[1], pair[0]), "&near=0.6")
    row = Comparison.objects.get()
    assert messages.take() == ("compare_saes", [row.pk]) and row.owner is not None
    Comparison.objects.update(state="running", stage="both on the same text", done=100, total=400, unit="tokens")
    assert "100 of 400 tokens" in client.get(at(pair)).content.decode()
    assert "100 of 400 tokens" in client.get(at(pair, "", "/live")).content.decode()
    progress = client.get(at(pair, "", ".json")).json()
    assert (progress["state"], progress["done"], progress["total"]) == ("running", 100, 400)
    client.post("/compare/cancel", {"a": pair[0].public_id, "b": pair[1].public_id})
    assert "was cancelled" in client.get(at(pair)).content.decode()
    Comparison.objects.update(state="failed", error="it takes 400 GB of memory")
    assert "It takes 400 GB of memory" in client.get(at(pair)).content.decode()
    body = {"a": pair[0].public_id, "b": pair[1].public_id}
    asked = client.post("/compare.json", body, content_type="application/json")
    assert asked.status_code == 202 and asked.json()["state"] == "queued"


def test_only_who_asked_for_it_and_staff_may_cancel_it(client: Client, pair: tuple[Sae, Sae]) -> None:
    ada, eve = (User.objects.create_user(name) for name in ("ada", "eve"))
    row, body = comparisons.ask(*pair, owner=ada), {"a": pair[0].public_id, "b": pair[1].public_id}

    def may(user: User, *, owner: bool) -> None:
        client.force_login(user)
        assert ("/compare/cancel" in client.get(at(pair)).content.decode()) == owner
        assert client.get(at(pair, "", ".json")).json()["may_cancel"] == owner

    assert client.post("/compare/cancel", body).status_code == 403
    may(eve, owner=False)
    for address in ("/compare/cancel", "/compare/cancel.json"):
        refused = client.post(address, body)
        assert refused.status_code == 403 and "Only who asked" in refused.content.decode()
    row.refresh_from_db()
    assert row.state == "queued"
    may(ada, owner=True)
    assert client.post("/compare/cancel.json", body).json() == {"done": True}
    assert comparisons.ask(*pair, owner=eve).state == "queued"  # whose it is now
    may(ada, owner=False)
    may(eve, owner=True)
    may(User.objects.create_user("root", is_staff=True), owner=True)
    client.post("/compare/cancel", body)
    row.refresh_from_db()
    assert row.state == "cancelled"


def test_what_cannot_be_compared_is_said_in_a_sentence(client: Client, pair: tuple[Sae, Sae]) -> None:
    small, large = pair
    elsewhere = sae_rows.publish(sae_rows.new_sae("other", slug="other", hook_name="blocks.0.hook_resid_post")).sae
    for path, words in (
        (at((small, elsewhere)), "only SAEs at the same hook point"),
        (at((small, small)), "not with itself"),
        ("/compare?a=000000000000&b=111111111111", "There is no SAE"),
        (f"/compare?sae={small.public_id}&sae={large.public_id}&sae={elsewhere.public_id}", "two are compared"),
    ):
        assert words in client.get(path).content.decode(), path
        assert words in client.get(path.replace("/compare", "/compare.json")).json()["message"]
    assert client.post("/compare", {"a": small.public_id, "b": elsewhere.public_id}).status_code == 409
    assert client.get(at(pair, "", ".csv")).status_code == 404


def test_both_are_marked_on_the_frontier_of_what_they_were_measured_on(client: Client, pair: tuple[Sae, Sae]) -> None:
    for swapped in (pair, pair[::-1]):
        page = client.get(at(swapped)).content.decode()
        assert re.findall(r'href="/s/(\w+)"[^>]* data-sel.*?<span class="lbl tag[^>]*>([AB])<', page, re.S) == [
            (sae.public_id, "AB"[swapped.index(sae)]) for sae in pair
        ]
    Run.objects.filter(sae=pair[1]).update(summary={})
    assert "data-sel" not in client.get(at(pair)).content.decode()


def test_a_difference_that_is_not_printed_is_not_called_worse() -> None:
    assert Metric("Dead", 0.0, 0.0004, "percent", "lower").words == ""
    assert Metric("Dead", 0.0, 0.0006, "percent", "lower").words == "worse"


def test_the_pages_of_saes_and_the_home_page_lead_to_it(client: Client, pair: tuple[Sae, Sae]) -> None:
    small, large = pair
    assert f'href="/compare?a={small.public_id}"' in client.get(f"/s/{small.public_id}").content.decode()
    chooser = client.get(f"/compare?a={small.public_id}").content.decode()
    assert f'value="{large.public_id}"' in chooser and f'<option value="{small.public_id}"' not in chooser
    home = client.get("/").content.decode()
    assert len(re.findall(r'name="sae" value="\w+" form="cmp"', home)) == 2 and 'id="cmp"' in home
    assert re.findall(r'value="(\w+)" selected', client.get("/compare").content.decode()) == [large.public_id]
    ticked = client.get(f"/compare?sae={small.public_id}&sae={large.public_id}")
    assert ticked["Location"] == at(pair)


# ---- on the page of a latent ----


def test_a_latent_leads_to_its_counterparts_but_where_its_run_is_pinned(
    client: Client, pair: tuple[Sae, Sae], django_assert_max_num_queries: Any
) -> None:
    small, large = pair
    address = f"/s/{small.public_id}/{FIRST + 3}"
    before, both = client.get(address), f"/s/{small.public_id}/pairs/{FIRST + 3}-{FIRST + 4}.json"
    assert "In other SAEs" not in before.content.decode()
    old = client.get(both)["ETag"]
    compare_rows.done(*pair)
    assert client.get(both, headers={"If-None-Match": old}).status_code == 200
    page = client.get(address, headers={"If-None-Match": before["ETag"]})
    assert page.status_code == 200 and f"/s/{large.public_id}/{FIRST + 3}" in page.content.decode()
    [found] = client.get(f"{address}.json").json()["counterparts"]
    assert (found["sae"], found["index"], found["d_sae"]) == (large.public_id, FIRST + 3, N_LARGE)
    assert found["cos"] == pytest.approx(1, abs=1e-5) and found["fires_too"] == pytest.approx(0.5, abs=0.1)
    assert client.get(f"/s/{small.public_id}@r1/{FIRST + 3}.json").json()["counterparts"] == []
    assert "In other SAEs" not in client.get(f"/s/{small.public_id}@r1/{FIRST + 3}").content.decode()
    managing.rename(large, "renamed")
    assert "renamed" in client.get(address, headers={"If-None-Match": page["ETag"]}).content.decode()
    managing.delete(large)
    assert "In other SAEs" not in client.get(address).content.decode()


# ---- in a browser ----


@pytest.fixture
def looking(page: Page) -> Iterator[Looking]:
    looking = Looking(page)
    yield looking
    assert not looking.faults, "\n".join(looking.faults)


@pytest.mark.browser
def test_how_it_looks_in_all_its_states(looking: Looking, pair: tuple[Sae, Sae], live_server: Any) -> None:
    looking.open(f"{live_server}{at(pair)}", "compare-not-yet")
    looking.open(f"{live_server}/compare?a={pair[0].public_id}", "compare-choose")
    row = compare_rows.done(*pair)
    for name, tab in (("compare", ""), ("compare-split", "&tab=split"), ("compare-only", "&tab=only-b")):
        looking.open(f"{live_server}{at(pair, tab)}", name)
    looking.open(f"{live_server}/s/{pair[0].public_id}/{FIRST + 3}", "latent-counterparts")
    Comparison.objects.filter(pk=row.pk).update(state="running", stage="both on the same text", done=1, total=4)
    looking.open(f"{live_server}{at(pair)}", "compare-running")
    looking.open(f"{live_server}/jobs", "jobs-comparing")


@pytest.mark.browser
def test_split_latents_are_within_reach_on_a_small_screen(
    page: Page, compared: tuple[Sae, Sae], live_server: Any
) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.goto(f"{live_server}{at(compared, '&tab=split')}")
    box = page.locator(".kids .ell").nth(1).bounding_box()
    assert box and box["width"] > 150


@pytest.mark.browser
def test_two_are_ticked_on_the_home_page_and_compared_without_a_script(
    plain: Page, compared: tuple[Sae, Sae], live_server: Any
) -> None:
    plain.goto(str(live_server))
    for sae in compared:
        plain.get_by_label(f"Compare {sae.name}").check()
    plain.get_by_role("button", name="Compare", exact=True).click()
    plain.get_by_label("near from cos").fill("0.85")
    plain.get_by_role("button", name="Apply").click()
    expect(plain).to_have_url(re.compile("near=0.85"))
    expect(plain.get_by_label("near from cos")).to_have_value("0.85")
    plain.get_by_role("link", name=re.compile("Only in B")).click()
    expect(plain.locator("#list")).to_contain_text(f"{N_LARGE - FIRST - SHARED} in all")
