"""The scripts of the SAE's page and the home page in a real browser: the chart of points, filters, folds."""

from __future__ import annotations

import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
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
    page.wait_for_selector("#scatter[data-drawn]")
    return page


def _places(sae: Page) -> list[dict[str, Any]]:
    """Where on the screen each point is, with its latent, as the axes say."""
    return sae.evaluate(
        """async () => {
          const host = document.querySelector("#scatter"), box = host.querySelector("canvas").getBoundingClientRect();
          const [[x0, x1], [y0, y1]] = [host.dataset.x, host.dataset.y].map(t => t.split(" ").map(Number));
          const data = await (await fetch(host.dataset.points)).json();
          return data.index.map((index, i) => ({ index, x: box.x + box.width * (data.x[i] - x0) / (x1 - x0),
            y: box.y + box.height * (1 - (data.y[i] - y0) / (y1 - y0)) }));
        }"""
    )


def test_the_points_are_drawn_where_the_axes_say(sae: Page) -> None:
    """Whether WebGL draws them or, where a browser has none, squares: the picture is dark at a point that is alone."""
    assert not sae.locator("#scatter svg .b").count() and sae.locator("#scatter .xt").count()
    points = _places(sae)
    at = max(points, key=lambda p: _apart(p, points))
    clip = {"x": at["x"] - 1, "y": at["y"] - 1, "width": 2, "height": 2}
    shot = Image.open(BytesIO(sae.screenshot(clip=clip))).convert("L")  # type: ignore[arg-type]
    assert max(shot.tobytes()) < 230


def _apart(p: dict[str, Any], points: list[dict[str, Any]]) -> float:
    return min(abs(p["x"] - q["x"]) + abs(p["y"] - q["y"]) for q in points if q != p)


def test_a_click_on_a_point_opens_its_latent(sae: Page, published: Stats) -> None:
    points = _places(sae)
    alone = max(points, key=lambda p: _apart(p, points))
    sae.mouse.move(alone["x"] + 2, alone["y"] + 2)
    expect(sae.locator("#scatter .said")).to_contain_text(f"latent {alone['index']}, density ")
    sae.mouse.click(alone["x"] + 2, alone["y"] + 2)
    sae.wait_for_url(f"**/s/{published.sae.public_id}/{alone['index']}")


def test_a_drag_over_the_chart_filters_the_table(sae: Page, published: Stats) -> None:
    box = sae.locator("#scatter canvas").bounding_box()
    assert box
    sae.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    sae.mouse.down()
    sae.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    expect(sae.locator("#scatter .range")).to_be_visible()
    sae.mouse.up()
    sae.wait_for_url(re.compile(r"\?dmin=[^&]+&dmax=[^&]+&kmin=[^&]+&kmax=[^&]+#latents"))
    low, high = (float(sae.locator(field).input_value()) for field in ("#k0", "#k1"))
    kurtosis, density = published.values["kurtosis"], published.values["density"]
    inside = (kurtosis >= low) & (kurtosis <= high)
    inside &= (density >= float(sae.input_value("#d0"))) & (density <= float(sae.input_value("#d1")))
    assert 0 < inside.sum() < len(kurtosis)
    expect(sae.locator("#latents .human")).to_contain_text(f"{inside.sum()} of 300 latents match")


def test_the_keyboard_walks_the_chart_opens_a_latent_and_filters(sae: Page, published: Stats) -> None:
    chart = sae.locator("#scatter canvas")
    chart.focus()
    sae.keyboard.press("ArrowRight")
    first = sae.locator("#scatter .said").text_content() or ""
    assert first.startswith("latent ")
    sae.keyboard.press("Space")
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown", "ArrowDown"):
        sae.keyboard.press(key)
    expect(sae.locator("#scatter .range")).to_be_visible()
    sae.keyboard.press("Escape")
    expect(sae.locator("#scatter .range")).to_be_hidden()
    here = (sae.locator("#scatter .said").text_content() or "").split(",")[0]
    sae.keyboard.press("Enter")
    sae.wait_for_url(f"**/s/{published.sae.public_id}/{here.removeprefix('latent ')}")
    sae.go_back()
    sae.locator("#scatter").scroll_into_view_if_needed()
    sae.wait_for_selector("#scatter[data-drawn]")
    chart.focus()
    sae.keyboard.press("Space")
    sae.keyboard.press("ArrowUp")
    sae.keyboard.press("ArrowRight")
    sae.keyboard.press("Space")
    sae.wait_for_url(re.compile(r"\?dmin=[^&]+&dmax=[^&]+&kmin=[^&]+&kmax=[^&]+#latents"))


def test_a_chart_that_zooms_comes_to_whoever_asks_and_runs_under_the_policy(sae: Page) -> None:
    """plotly.js would need eval for WebGL in some versions, which the site does not allow."""
    said: list[str] = []
    sae.on("console", lambda message: said.append(message.text))
    assert "plotly" not in sae.evaluate("performance.getEntriesByType('resource').map(r => r.name).join()")
    sae.click("[data-zoom]")
    sae.wait_for_selector("#scatter .js-plotly-plot .nsewdrag")
    expect(sae.locator("#scatter .ph")).to_be_hidden()
    assert not [text for text in said if "Content Security Policy" in text], said


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
    expect(page).to_have_url(re.compile(r"\?all=1$"))
    page.fill("#fs", "sweep 7")
    expect(rows).to_have_count(1)
