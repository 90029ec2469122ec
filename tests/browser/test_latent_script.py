"""The latent page's script in a real browser: keys, tokens, and an address that always says what is shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.latent_rows import ALIVE, Published, publish
from tests.looking import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def published() -> Published:
    return publish()


@pytest.fixture
def latent(page: Page, live_server: object, published: Published) -> Iterator[Page]:
    """The page of a latent, failing the test on any script error."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{live_server}{published.url(ALIVE)}")
    yield page
    assert not errors


def test_keys_open_intervals_and_the_address_follows(latent: Page) -> None:
    latent.keyboard.press("3")  # top is 1, the strongest band 2
    expect(latent.locator(".ctx")).to_have_count(5)
    expect(latent).to_have_url(re.compile(r"\?int=b9$"))
    assert latent.get_attribute("#acth", "data-band") == "b9"
    assert latent.get_attribute("[data-int=b9]", "aria-current") == "true"
    assert latent.get_attribute("[rel=next]", "href").endswith("/2?int=b9")
    latent.keyboard.press(",")
    latent.wait_for_url("**?int=b8")
    latent.keyboard.press("0")
    expect(latent.locator(".ctx")).to_have_count(10)
    latent.keyboard.press("1")
    expect(latent.locator(".ctx")).to_have_count(20)
    expect(latent).to_have_url(re.compile(r"/s/[^?]+$"))


def test_clicking_a_band_stays_on_the_page_and_shows_what_its_link_does(latent: Page) -> None:
    latent.evaluate("window.same = true")
    latent.click("[data-int=b4]")
    expect(latent.locator(".ctx")).to_have_count(5)
    shown = latent.inner_text("#ctxs")
    assert latent.evaluate("window.same")
    latent.reload()
    assert latent.inner_text("#ctxs") == shown


def test_layouts_and_whitespace_follow_their_keys(latent: Page) -> None:
    latent.keyboard.press("v")
    assert latent.get_attribute("#ctxs", "data-view") == "snip"
    latent.keyboard.press("v")
    expect(latent.locator(".ctx[data-part]")).to_have_count(0)
    expect(latent).to_have_url(re.compile(r"\?view=full$"))
    latent.keyboard.press("v")
    latent.keyboard.press("w")
    expect(latent).to_have_url(re.compile(r"\?ws=1$"))
    assert latent.evaluate("getComputedStyle(document.querySelector('.ct .s'), '::before').content") == '"·"'


def test_rows_open_on_enter_with_the_whole_window(latent: Page) -> None:
    for key in ("j", "j", "k", "Enter"):
        latent.keyboard.press(key)
    latent.wait_for_selector(".ctx[data-open] .ca button")
    row = latent.locator(".ctx").nth(0)
    assert row.get_attribute("data-part") is None
    assert row.locator("[data-a]").count() == 4
    assert latent.evaluate("document.activeElement.matches('.ctx[data-open]')")
    latent.keyboard.press("Enter")
    assert latent.locator(".ctx[data-open]").count() == 0


def test_arrows_walk_tokens_and_mark_them_on_the_histogram(latent: Page) -> None:
    latent.keyboard.press("j")
    latent.keyboard.press("ArrowRight")
    assert "activation\n48.2" in latent.inner_text(".tip")
    assert "100 %" in latent.inner_text(".tip")
    assert latent.evaluate("document.querySelector('#acth .mk').style.getPropertyValue('--x')") == "100"
    latent.keyboard.press("ArrowRight")
    assert "activation\n4.016" in latent.inner_text(".tip")
    latent.keyboard.press("ArrowRight")
    assert "activation\n0" in latent.inner_text(".tip")
    assert latent.locator("#acth .mk").count() == 0
    latent.keyboard.press("Escape")
    assert latent.is_hidden(".tip")


def test_hovering_a_part_of_a_character_says_which(latent: Page) -> None:
    latent.locator(".bys span").first.hover()
    expect(latent.locator(".tip")).to_contain_text("bytes F0 9F")
    assert "part of\n🌙" in latent.inner_text(".tip")


def test_copied_text_is_the_text_itself(latent: Page, published: Published) -> None:
    latent.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for n in (2, 3, 4, 7):
        row = latent.locator(".ctx").nth(n)
        row.locator(".cx").click()
        latent.locator(".ctx").nth(n).locator(".ca button", has_text="Copy text").click()
        window = published.windows[n]
        text = b"".join(published.words.tokens[i] for i in window).decode("utf-8", "replace")
        until(latent, "async text => await navigator.clipboard.readText() === text", text)


def test_link_to_a_context_opens_it(latent: Page) -> None:
    latent.context.grant_permissions(["clipboard-read", "clipboard-write"])
    latent.locator(".ctx").nth(5).locator(".cx").click()
    latent.locator(".ctx").nth(5).locator(".ca button", has_text="Link here").click()
    latent.wait_for_selector(".toast.on")
    latent.goto(latent.evaluate("navigator.clipboard.readText()"))
    assert latent.locator(".ctx[data-open]").count() == 1
    assert latent.locator(".ctx").nth(5).get_attribute("data-open") is not None


def test_single_keys_can_be_turned_off_for_good(latent: Page) -> None:
    latent.keyboard.press("?")
    latent.locator("#single").uncheck()
    latent.keyboard.press("Escape")
    latent.keyboard.press("v")
    latent.reload()
    latent.keyboard.press("v")
    assert latent.get_attribute("#ctxs", "data-view") == "kwic"
    latent.locator("footer [data-do=help]").click()
    latent.locator("#single").check()
    latent.keyboard.press("Escape")
    latent.keyboard.press("v")
    assert latent.get_attribute("#ctxs", "data-view") == "snip"


def test_brackets_move_between_latents_and_keep_the_view(latent: Page) -> None:
    latent.keyboard.press("v")
    latent.keyboard.press("]")
    latent.wait_for_url("**/2?view=snip")  # 1 is dead
    latent.keyboard.press("[")
    latent.wait_for_url("**/0?view=snip")


def test_all_of_it_can_be_reached_without_script(
    plain: Page, live_server: object, published: Published
) -> None:
    plain.goto(f"{live_server}{published.url(ALIVE)}")
    plain.click("[data-int=b3]")
    expect(plain.locator(".ctx")).to_have_count(5)
    plain.click("[data-layout=full]")
    expect(plain).to_have_url(re.compile("view=full"))
    plain.locator(".cx").first.click()
    expect(plain.locator(".ctx[data-open]")).to_have_count(1)
    expect(plain).to_have_url(re.compile("int=b3&view=full&ctx="))
    plain.fill("#ix", "7")
    plain.press("#ix", "Enter")
    expect(plain).to_have_url(f"{live_server}{published.url(7)}")


@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1440])
def test_nothing_scrolls_sideways(latent: Page, width: int) -> None:
    latent.set_viewport_size({"width": width, "height": 900})
    until(latent, "width => innerWidth === width", width)
    assert latent.evaluate("document.documentElement.scrollWidth") <= width
