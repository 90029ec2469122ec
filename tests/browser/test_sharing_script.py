"""Citing, embedding and keeping in a real browser: what is copied, whose frames show a latent, what keeps a run."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from sae_backend.models import Run
from tests.browser.latent_rows import ALIVE, Published, publish

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def published() -> Published:
    return publish()


@pytest.fixture
def elsewhere() -> Iterator[dict[str, str]]:
    """Another site with one page, whose HTML a test puts in; its address is under "at"."""
    site: dict[str, str] = {"html": ""}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(site["html"].encode())

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site["at"] = f"http://127.0.0.1:{server.server_address[1]}/"
    yield site
    server.shutdown()
    server.server_close()


def shared(published: Published) -> bool:
    return Run.objects.get(pk=published.run.pk).shared_at is not None


def test_cite_opens_a_dialog_copies_bibtex_and_keeps_the_run(
    page: Page, live_server: object, published: Published
) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{live_server}{published.url(ALIVE)}?int=b3")
    assert not shared(published)
    page.click("a[data-cite]")
    expect(page.locator("dialog#cite")).to_be_visible()
    assert shared(published) and page.url.endswith("?int=b3")
    page.click("dialog#cite button:has-text('Copy BibTeX')")
    expect(page.locator(".toast")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"@misc{{sae-{published.sae.public_id}-{ALIVE},") and copied.endswith("}")
    assert f"url   = {{{live_server}/s/{published.sae.public_id}@r3/{ALIVE}?int=b3}}" in copied
    page.keyboard.press("Escape")
    expect(page.locator("dialog#cite")).to_have_count(0)


def test_an_sae_is_cited_in_a_dialog_too(page: Page, live_server: object, published: Published) -> None:
    page.goto(f"{live_server}/s/{published.sae.public_id}?sort=-kurtosis")
    page.click("a[data-cite]")
    expect(page.locator("dialog#cite h1")).to_have_text("Cite this SAE")
    expect(page.locator("dialog#cite pre")).to_contain_text("@r3?sort=-kurtosis}")
    page.click("dialog#cite button:has-text('Close')")
    expect(page.locator("dialog#cite")).to_have_count(0)


def test_another_site_shows_the_embed_that_was_copied_and_no_other_page(
    page: Page, live_server: object, published: Published, elsewhere: dict[str, str]
) -> None:
    """A frame is blocked where its document is the browser's own error page."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{live_server}{published.url(ALIVE)}/cite")
    page.click("button:has-text('Copy HTML')")
    page.wait_for_selector(".toast.on")
    embed = page.evaluate("navigator.clipboard.readText()")
    Run.objects.filter(pk=published.run.pk).update(shared_at=None)
    frames = "".join(f'<iframe src="{live_server}{published.url(ALIVE, rest)}"></iframe>' for rest in ("", "/cite"))
    elsewhere["html"] = f"<!doctype html><title>A post</title>{embed}{frames}"
    page.goto(elsewhere["at"])
    shown = page.frame_locator("iframe").first
    expect(shown.locator("h1 .idx")).to_have_text(str(ALIVE))
    expect(shown.locator(".ctx").nth(3)).to_be_attached()
    assert shown.locator("script").count() == 0
    expect(shown.locator("h1 a")).to_have_css("color", re.compile("rgb"))
    page.wait_for_load_state("networkidle")
    blocked = [frame for frame in page.frames[1:] if frame.locator(".idx").count() == 0]
    assert len(page.frames) == 4 and len(blocked) == 2
    assert shared(published)  # somebody reads it there


@pytest.fixture
def plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Browsers say nothing of navigations over plain HTTP, but to this machine they do."""
    monkeypatch.setattr("browser.links.by_reader", lambda request: False)


def test_a_reader_of_a_pinned_page_keeps_its_run_and_who_only_loads_it_does_not(
    page: Page, live_server: object, published: Published, plain_http: None
) -> None:
    page.goto(f"{live_server}/s/{published.sae.public_id}@r3/{ALIVE}")
    page.wait_for_load_state("networkidle")
    assert not shared(published)
    with page.expect_response("**/cite.json") as answer:
        page.keyboard.press("ArrowDown")
    assert answer.value.request.method == "POST" and answer.value.ok and shared(published)


def test_a_click_on_a_pinned_link_is_what_a_browser_says_it_is(
    page: Page, live_server: object, published: Published
) -> None:
    page.goto(f"{live_server}{published.url(ALIVE)}")
    assert not shared(published)
    page.click(".foot a:has-text('r3')")
    page.wait_for_url(f"**@r3/{ALIVE}")
    assert shared(published)


def test_without_scripts_the_citation_has_a_button_that_keeps_the_run(
    plain: Page, live_server: object, published: Published, plain_http: None
) -> None:
    plain.goto(f"{live_server}{published.url(ALIVE)}/cite")
    assert not shared(published)
    plain.click("text=Keep this run for its links")
    expect(plain.locator("text=Keep this run for its links")).to_have_count(0)
    expect(plain.locator("pre").first).to_contain_text("@misc{")
    assert shared(published)
