"""Every page of the site, wide and narrow, light and dark: nothing for axe-core to find, nothing scrolls sideways,
nothing moves while it loads. Pictures of all of them are left in artefacts/screenshots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from sae_backend import managing, runs
from sae_backend.models import Sae, SaeImport, SeriesCosine, UploadFile
from tests.browser import latent_rows, run_rows, sae_rows
from tests.browser.latent_rows import ALIVE, DEAD, RARE
from tests.looking import Looking

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def looking(page: Page) -> Iterator[Looking]:
    looking = Looking(page)
    yield looking
    assert not looking.faults, "\n".join(looking.faults)


def test_the_page_of_a_latent_in_all_its_states(looking: Looking, live_server: object) -> None:
    published = latent_rows.publish()
    for name, index, query in (
        ("alive", ALIVE, ""), ("band-snippet", ALIVE, "?int=b3&view=snip"), ("near-threshold", ALIVE, "?int=low"),
        ("full", ALIVE, "?view=full&ws=1"), ("rare", RARE, ""), ("dead", DEAD, ""),
    ):  # fmt: skip
        looking.open(f"{live_server}{published.url(index, query)}", f"latent-{name}")
    looking.open(f"{live_server}{published.url(ALIVE, '/cite')}", "latent-cite")
    looking.open(f"{live_server}/search?q=moon", "search")


def test_an_opened_context_and_the_sheet_of_keys(looking: Looking, live_server: object) -> None:
    page, published = looking.page, latent_rows.publish()
    page.goto(f"{live_server}{published.url(ALIVE)}")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ctx[data-open] .ca button")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".tip:not([hidden])")
    looking.look("latent-opened", page.viewport_size["width"], "light")  # type: ignore[index]
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    page.wait_for_selector("#help[open]")
    looking.look("keys", page.viewport_size["width"], "dark")  # type: ignore[index]


def test_the_lists_of_saes_and_of_latents(looking: Looking, live_server: object) -> None:
    depth = [{"hook_name": str(i), "plain": 3.0 * 1.6**i, "rotated": 3.0} for i in range(13)]
    layers = {"basis_by_layer": {"tokens": 4064, "layers": depth}}
    published = sae_rows.publish(figures={**sae_rows.FIGURES, **layers})
    sae_rows.publish(sae_rows.new_sae("wider", slug="wider", k=16), figures={**sae_rows.FIGURES, "l0": 16, "fvu": 0.1})
    run_rows.computing(sae_rows.new_sae("computing", slug="computing"))
    for name, path in (
        ("home", "/"), ("sae", f"/s/{published.sae.public_id}"), ("definitions", "/statistics"),
        ("sae-filtered", f"/s/{published.sae.public_id}?token=moon&by=skewness&from=-9&sort=-skewness&dmin=x"),
        ("sae-empty", f"/s/{published.sae.public_id}?token=nothing"),
    ):  # fmt: skip
        looking.open(f"{live_server}{path}", name)


def test_the_frontier_and_an_sae_in_training(looking: Looking, live_server: object) -> None:
    curve = {"k": 8, "tokens": 64, "points": [[k, k, 0.9 / k, 0.5 / k] for k in (1, 2, 4, 8, 16)]}
    for step in (90, 900, 3000):
        name, figures = f"step {step}", {**sae_rows.FIGURES, "fvu": 30 / step, "k_curve": curve}
        new = sae_rows.new_sae(name, slug=f"step-{step}", series="a training", step=step)
        published = sae_rows.publish(new, figures, seed=step)
    cos = np.linspace(-0.2, 1, new.d_sae).astype("<f4").tobytes()
    for earlier in Sae.objects.exclude(pk=new.pk):
        SeriesCosine.objects.create(sae=earlier, final=new, cos=cos)
    at = published.sae.public_id
    for name, path in (
        ("frontier", f"/frontier?sae={at}"), ("frontier-ce", "/frontier?metric=ce&k=0"),
        ("training", f"/s/{at}/training"), ("latent-training", f"/s/{at}/42/training"),
        ("latent-in-series", f"/s/{at}/42"),
    ):  # fmt: skip
        looking.open(f"{live_server}{path}", name)


def test_pairs_of_latents(looking: Looking, live_server: object) -> None:
    published, readable = sae_rows.publish(), latent_rows.publish()
    at, pair = f"/s/{published.sae.public_id}/pairs", f"/s/{readable.sae.public_id}/pairs/{ALIVE}"
    looking.open(f"{live_server}{at}?below=-0.4", "pairs")
    looking.open(f"{live_server}{at}?side=nearest&above=x", "pairs-nearest")
    looking.open(f"{live_server}{pair}-10", "pair")
    looking.open(f"{live_server}{pair}-{DEAD}", "pair-dead")


def test_what_is_not_there(looking: Looking, live_server: object) -> None:
    published, gone = sae_rows.publish(), sae_rows.publish(sae_rows.new_sae("gone", slug="gone"))
    managing.delete(gone.sae)
    at = published.sae.public_id
    for name, path, status in (
        ("out-of-range", f"/s/{at}/31007", 404), ("deleted", f"/s/{gone.sae.public_id}", 410),
        ("unknown-sae", f"/s/{at[:9]}fff", 404), ("unknown-run", f"/s/{at}@r9", 404),
        ("unknown-page", "/nothing/here", 404), ("search-nothing", "/search?q=moo+shine", 200),
    ):  # fmt: skip
        looking.open(f"{live_server}{path}", name, status)


def test_an_sae_that_is_not_ready(looking: Looking, live_server: object) -> None:
    idle, busy, failed = (sae_rows.new_sae(name, slug=name) for name in ("idle", "busy", "failed"))
    run_rows.computing(busy)
    runs.fail(sae_rows.new_run(failed).pk, "the disk is full; free 3 GB and ask again")
    for sae in (idle, busy, failed):
        looking.open(f"{live_server}/s/{sae.public_id}", f"sae-{sae.name}")


def test_an_import_with_its_step_of_training(looking: Looking, live_server: object, settings: Any) -> None:
    settings.OPEN_TO_ALL = True
    row = SaeImport.objects.create(name="", lm=sae_rows.language_model(), state=SaeImport.State.RECEIVING)
    UploadFile.objects.create(of=row, name="topk_ckpts/step_500.pt", size=20, received=20, complete=True)
    looking.open(f"{live_server}/imports/{row.key}", "import-step")
    SaeImport.objects.filter(pk=row.pk).update(state=SaeImport.State.WAITING, error="ae.pt would run code")
    looking.open(f"{live_server}/imports/{row.key}", "import-refused")
    settings.OPEN_TO_ALL = False
    looking.open(f"{live_server}/upload", "upload-stranger")


def test_paper_has_the_figures_and_none_of_the_controls(page: Page, live_server: object) -> None:
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 794, "height": 1123})  # A4
    page.goto(f"{live_server}{latent_rows.publish().url(ALIVE)}")
    assert not page.is_visible(".top") and not page.is_visible(".bar-tools") and not page.is_visible(".thumb")
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    assert page.is_visible("#acth") and page.is_visible(".ctx") and page.is_visible(".nb")


def test_paper_is_white_whatever_the_screen_was_and_nothing_on_it_is_narrow(page: Page, live_server: object) -> None:
    page.add_init_script("localStorage.theme = 'dark'")
    page.emulate_media(media="print", color_scheme="dark")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 within its margins
    page.goto(f"{live_server}{latent_rows.publish().url(ALIVE)}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    contexts, neighbours = (page.locator(at).first.bounding_box() for at in (".ctx", ".nb a"))
    assert contexts and neighbours and contexts["width"] > 600 and neighbours["width"] > 80


def test_a_search_on_a_telephone_gives_its_words_a_whole_line(page: Page, live_server: object) -> None:
    latent_rows.publish()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"{live_server}/search?q=moon")
    words, button = page.locator("#q").bounding_box(), page.get_by_role("button", name="Search").bounding_box()
    assert words and words["width"] > 350
    chosen = page.locator("#in").bounding_box()
    assert chosen and button and chosen["width"] > 240 and abs(chosen["y"] - button["y"]) < 8
