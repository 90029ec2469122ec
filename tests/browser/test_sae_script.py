"""The scripts of the SAE's page and the home page in a real browser: the chart of points, filters, folds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser import sae_rows
from tests.browser.sae_rows import Stats

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def published() -> Stats:
    return sae_rows.publish()


@pytest.fixture
def sae(page: Page, live_server: object, published: Stats) -> Page:
    """An SAE's page with its points drawn."""
    page.goto(f"{live_server}/s/{published.sae.public_id}")
    page.locator("#scatter").scroll_into_view_if_needed()
    page.wait_for_selector("#scatter .point")
    return page


def _middles(sae: Page) -> list[dict[str, Any]]:
    return sae.evaluate(
        "() => [...document.querySelectorAll('#scatter .point')].map(p => { const b = p.getBoundingClientRect();"
        " return { x: b.x + b.width / 2, y: b.y + b.height / 2 }; })"
    )


def test_a_click_on_a_point_opens_its_latent(sae: Page, published: Stats) -> None:
    points = _middles(sae)
    alone = max(points, key=lambda p: min(abs(p["x"] - q["x"]) + abs(p["y"] - q["y"]) for q in points if q != p))
    data = sae.evaluate("fetch(document.querySelector('#scatter').dataset.points).then(r => r.json())")
    sae.mouse.move(alone["x"], alone["y"])
    sae.wait_for_selector("#scatter .hoverlayer .hovertext")
    sae.mouse.click(alone["x"], alone["y"])
    sae.wait_for_url(f"**/s/{published.sae.public_id}/{data['index'][points.index(alone)]}")


def test_a_drag_over_the_chart_filters_the_table(sae: Page, published: Stats) -> None:
    box = sae.locator("#scatter .nsewdrag").bounding_box()
    assert box
    sae.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    sae.mouse.down()
    sae.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    sae.mouse.up()
    sae.wait_for_url(re.compile(r"\?dmin=[^&]+&dmax=[^&]+&kmin=[^&]+&kmax=[^&]+#latents"))
    assert sae.locator("#d0").input_value() and sae.locator("#k1").input_value()


def test_a_form_leaves_empty_fields_out_of_the_address(sae: Page) -> None:
    sae.keyboard.press("f")
    sae.keyboard.type("moon\n")
    sae.wait_for_url("**?token=moon**")
    assert "dmin" not in sae.url and "by=" not in sae.url
    assert sae.input_value("#tk") == "moon"


def test_a_sweep_unfolds_and_narrows(page: Page, live_server: object) -> None:
    for i in range(10):
        figures = {**sae_rows.FIGURES, "l0": 8.0 * (i + 1), "fvu": 0.3 - 0.01 * i}
        sae_rows.publish(sae_rows.new_sae(f"sweep {i}", slug=f"sweep-{i}"), figures=figures)
    page.goto(f"{live_server}/")
    rows = page.locator("#saes tbody tr:not(.grp):not(.sgrp):visible")
    expect(rows).to_have_count(6)
    page.select_option("#fl", "64-")
    expect(rows).to_have_count(3)  # folded ones too
    page.select_option("#fl", "")
    expect(rows).to_have_count(6)
    page.click("[data-unfold]")
    expect(rows).to_have_count(10)
    assert page.url.endswith("?all=1")
    page.fill("#fs", "sweep 7")
    expect(rows).to_have_count(1)
