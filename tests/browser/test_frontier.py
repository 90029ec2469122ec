"""The frontier: which runs stand beside each other, which are Pareto-optimal, and what the address keeps."""

from __future__ import annotations

import csv
from typing import Any

import pytest
from django.test import Client

from browser.frontier_chart import METRICS, Place, Point, frontier, pareto
from tests.browser import sae_rows

PLACE = Place("lm", "hook", "text", 256)
CURVE = {"k": 8, "tokens": 64, "points": [[1, 1.0, 0.6, 0.5], [8, 8.0, 0.14, 0.15], [16, 15.5, 0.2, 0.21]]}


def point(l0: float, value: float, line: str = "TopK 1024", **more: Any) -> Point:
    return Point(l0, value, "k1", f"{l0} {value}", line, f"/{l0}/{value}", **more)


def test_axes_have_ticks_people_think_in() -> None:
    drawn = frontier(PLACE, METRICS["fvu"], [point(16, 0.14), point(32, 0.065)])
    assert [tick.text for tick in drawn.xticks] == ["16", "32"]
    assert len(drawn.yticks) > 2


@pytest.mark.parametrize(("metric", "best"), [("fvu", {1, 2, 3}), ("ce", {1, 4})])
def test_pareto_optimal_is_what_no_other_equals_or_beats_in_both(metric: str, best: set[int]) -> None:
    points = [point(8, 0.5), point(16, 0.3), point(16, 0.3), point(16, 0.9)]
    assert {i + 1 for i, p in enumerate(points) if p in pareto(points, METRICS[metric])} == best


def test_other_k_have_room_on_the_axes_and_a_dot_each() -> None:
    curve = ((1, 1.0, 0.9), (8, 8.0, 0.14), (16, 15.0, 0.2))
    drawn = frontier(PLACE, METRICS["fvu"], [point(8, 0.14, curve=curve)], with_k=True)
    (line,) = drawn.k_curves
    places = [tuple(float(x) for x in pair.split(",")) for pair in line.path.split()]
    assert all(0 < x < 100 and 0 < y < 100 for x, y in places) and line.dots.count("h0") == 3
    assert places[1] == (drawn.points[0].x, 100 - drawn.points[0].y)
    assert not frontier(PLACE, METRICS["fvu"], [point(8, 0.14, curve=curve)]).k_curves


def test_one_metric_on_a_linear_axis() -> None:
    drawn = frontier(PLACE, METRICS["ce"], [point(8, 0.9), point(16, 0.98)])
    assert [t.text for t in drawn.yticks] == ["0.9", "0.92", "0.94", "0.96", "0.98"]


@pytest.fixture
def published(transactional_db: None) -> dict[str, sae_rows.Stats]:
    """Three SAEs of one hook point and one of another."""
    made = {}
    for name, l0, fvu, d_sae, more in (
        ("sparse", 8.0, 0.14, 300, {}), ("wide", 8.0, 0.12, 600, {}),
        ("worse", 16.0, 0.13, 300, {"architecture": "jumprelu"}),
        ("elsewhere", 4.0, 0.5, 300, {"hook_name": "blocks.0.hook_resid_post"}),
    ):  # fmt: skip
        figures = {**sae_rows.FIGURES, "l0": l0, "fvu": fvu, "k_curve": CURVE if name == "sparse" else None}
        made[name] = sae_rows.publish(sae_rows.new_sae(name, slug=name, d_sae=d_sae, **more), figures)
    return made


def names(client: Client, query: str) -> list[tuple[str, bool]]:
    return [(p["name"], p["pareto"]) for p in client.get(f"/frontier.json{query}").json()["points"]]


def test_runs_of_one_place_are_compared_and_the_address_chooses_among_them(
    client: Client, published: dict[str, sae_rows.Stats]
) -> None:
    assert names(client, "") == [("sparse", False), ("wide", True), ("worse", False)]
    assert names(client, "?d_sae=300") == [("sparse", True), ("worse", True)]
    assert names(client, "?arch=JumpReLU") == [("worse", True)]
    assert names(client, "?hook=gpt2-small+blocks.0.hook_resid_post+moonlight+16") == [("elsewhere", True)]
    assert names(client, "?metric=ce") == [("sparse", True), ("wide", True), ("worse", False)]
    assert names(client, "?metric=nonsense&d_sae=x&hook=nowhere")[1] == ("wide", True)
    found = client.get(f"/frontier?sae={published['wide'].sae.public_id}&d_sae=600").content.decode()
    assert "Pareto-optimal" in found and '<option value="300"' not in found
    assert found.count(' class="pt ') == 1 and "data-sel" in found and 'value="600" checked' in found


def test_no_metric_stands_alone(client: Client, published: dict[str, sae_rows.Stats]) -> None:
    page = client.get("/frontier?k=0").content.decode()
    said = "L0 8.0, FVU 0.120, normalised MSE 0.151, CE recovered 97.9\u202f%, dead 20"
    assert f'title="wide: {said}. Pareto-optimal"' in page and "class=\"dots" not in page
    assert "class=\"dots" in client.get("/frontier").content.decode()
    assert "class=\"dots" not in client.get("/frontier?metric=ce").content.decode()


def test_other_k_are_in_the_table_the_json_and_the_csv(client: Client, published: dict[str, sae_rows.Stats]) -> None:
    sparse = client.get("/frontier.json").json()["points"][0]
    assert sparse["k_curve"][2] == {"k": 16, "l0": 15.5, "fvu": 0.2, "normalised_mse": 0.21}
    assert '<th class="num" scope="col">16</th>' in client.get("/frontier").content.decode()
    rows = list(csv.DictReader(client.get("/frontier.csv").content.decode().splitlines()))
    assert [(r["name"], r["at_k"], r["fvu"], r["pareto"]) for r in rows] == [
        ("sparse", "", "0.14", "0"), ("sparse", "1", "0.6", ""), ("sparse", "8", "0.14", ""),
        ("sparse", "16", "0.2", ""),
        ("wide", "", "0.12", "1"), ("worse", "", "0.13", "0"),
    ]  # fmt: skip


def test_a_newer_run_takes_the_place_of_its_elder(client: Client, published: dict[str, sae_rows.Stats]) -> None:
    again = sae_rows.publish(published["worse"].sae, {**sae_rows.FIGURES, "l0": 4.0, "fvu": 0.11})
    points = client.get("/frontier.json").json()["points"]
    assert [(p["name"], p["run"], p["fvu"]) for p in points if p["name"] == "worse"] == [("worse", 2, 0.11)]
    assert again.run.number == 2


def test_an_empty_site_has_no_frontier_and_says_so(client: Client, db: None) -> None:
    assert "No SAE has been measured yet" in client.get("/frontier").content.decode()
    assert client.get("/frontier.json").json()["points"] == []


def test_home_leads_to_the_frontier_of_its_chart(client: Client, published: dict[str, sae_rows.Stats]) -> None:
    page = client.get("/").content.decode()
    assert 'href="/frontier?hook=gpt2-small%20blocks.1.hook_resid_post%20moonlight%2016"' in page
