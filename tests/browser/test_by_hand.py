"""Looking after SAEs and jobs in a real browser: on a narrow screen, by keyboard, and as axe-core sees the pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import expect

from sae_backend import additions, store
from sae_backend import runs as states
from sae_backend.core.contexts import Contexts
from sae_backend.models import Addition, Dataset, Run, SaeImport, UploadFile, Worker
from tests import looking
from tests.backend import messages
from tests.browser import run_rows, sae_rows
from tests.browser.test_upload_page import DETECTED, TRIAL

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from pytest_django.live_server_helper import LiveServer

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def open_site(settings: Any) -> Iterator[None]:
    settings.OPEN_TO_ALL = True
    settings.STALLED_SECONDS = 3600.0  # what waits here waits for no worker
    yield
    messages.forget()


@pytest.fixture
def narrow(page: Page) -> Page:
    page.set_viewport_size({"width": 390, "height": 844})
    return page


def another_dataset(run: Run) -> Dataset:
    made = Dataset.objects.create(name="sunlight", lm=run.sae.lm, ctx_len=16, source="tests")
    tokens = store.read_contexts(run.dataset, 0, 2)
    block = Contexts(tokens, tokens[:, 0].astype("int32") * 0, tokens[:, 0].astype("int32") * 0, ["document"])
    store.write_contexts(made, [(block, ["text", "text"])])
    return made


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name).press("Enter")


def test_an_sae_is_renamed_its_run_kept_and_it_is_deleted(narrow: Page, live_server: LiveServer) -> None:
    page, live = narrow, sae_rows.publish(sae_rows.new_sae("first", slug="first"))
    settings = f"{live_server.url}/s/{live.sae.public_id}/settings"
    page.goto(settings)
    page.get_by_role("textbox", name="Name", exact=True).fill("second of its name")
    press(page, "Rename")
    expect(page.get_by_role("heading", name="Settings of second of its name")).to_be_visible()
    for name in ("first", "second-of-its-name"):
        page.goto(f"{live_server.url}/s/{name}")
        expect(page).to_have_url(f"{live_server.url}/s/{live.sae.public_id}")
    page.goto(settings)
    press(page, "Keep r1")
    expect(page.get_by_text("kept for ever")).to_be_visible()
    press(page, "Let go r1")
    expect(page.get_by_text("kept for ever")).to_have_count(0)
    confirm = page.get_by_label("Type the SAE's name to delete it")
    confirm.fill("first")
    press(page, "Delete second")
    expect(page.get_by_text("This is not its name")).to_be_visible()
    confirm.fill("second of its name")
    press(page, "Delete second")
    expect(page.get_by_role("heading", name="This SAE was deleted")).to_be_visible()
    assert page.goto(f"{live_server.url}/s/first").status == 410  # type: ignore[union-attr]


def test_another_run_waits_its_turn_is_cancelled_and_resumed(narrow: Page, live_server: LiveServer) -> None:
    page, live = narrow, sae_rows.publish()
    other = another_dataset(live.run)
    for place in ("Queued, next", "Queued, 2nd"):
        page.goto(f"{live_server.url}/s/{live.sae.public_id}/settings#rerun")
        page.get_by_label("Data set").select_option(str(other.pk))
        press(page, "Compute")
        page.wait_for_url("**/jobs/*")
        expect(page.get_by_text(place).first).to_be_visible()
    expect(page.get_by_text("2nd in the queue")).to_be_visible()
    queued = page.locator("section", has=page.get_by_role("heading", name="Queue"))
    assert queued.get_by_role("link", name="topk8-300").count() == 3 and "2 waiting" in queued.inner_text()
    page.get_by_role("link", name="Cancel").press("Enter")
    press(page, "Cancel the job")
    expect(page.get_by_role("heading", name="Cancelled: topk8-300")).to_be_visible()
    press(page, "Resume")
    expect(page.get_by_role("heading", name="Queued: topk8-300")).to_be_visible()
    run = Run.objects.order_by("-pk")[0]
    assert (run.dataset, run.state) == (other, "queued")


def test_an_addition_that_failed_is_tried_again_and_taken_from_the_list(narrow: Page, live_server: LiveServer) -> None:
    page, row = narrow, additions.ask("model", "hub", "tiny", "org/tiny")
    Addition.objects.update(state="failed", error="org/tiny is not on the hub")
    page.goto(f"{live_server.url}/models")
    expect(page.get_by_role("heading", name="Being added")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ended")).to_be_visible()
    page.get_by_role("link", name="tiny").press("Enter")
    press(page, "Try again")
    expect(page.get_by_text("waits for a worker")).to_be_visible()
    page.goto(f"{live_server.url}/models")
    expect(page.get_by_role("heading", name="Being added")).to_be_visible()
    page.goto(f"{live_server.url}/additions/{row.pk}")
    press(page, "Cancel")
    press(page, "Take it from the list")
    expect(page.get_by_role("heading", name="Language models")).to_be_visible()
    assert not Addition.objects.exists()


def test_a_button_that_is_fetched_anew_keeps_the_focus(page: Page, live_server: LiveServer) -> None:
    row = additions.ask("model", "hub", "tiny", "org/tiny")
    page.goto(f"{live_server.url}/additions/{row.pk}")
    before = page.get_by_role("button", name="Cancel").element_handle()
    before.focus()  # type: ignore[union-attr]
    looking.until(page, "before => !before.isConnected", before)
    expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Take it from the list")).to_be_visible()


@pytest.fixture
def pages(live_server: LiveServer) -> list[str]:
    """Addresses of a page of each kind and state."""
    live = sae_rows.publish()
    lm, dataset = live.sae.lm, live.run.dataset
    failed = sae_rows.new_run(live.sae)
    states.fail(failed.pk, "5 workers ended: perhaps for want of memory")
    computing = run_rows.computing(live.sae)
    run_rows.shard_held(computing, run_rows.CONTEXTS, 0, begun=10, progress=5)
    sign = {"started_at": run_rows.ago(9), "seen_at": run_rows.ago(1), "since": run_rows.ago(3)}
    Worker.objects.create(name="gpu-0", queues="compute", task="compute_contexts", target=computing.pk, **sign)
    report = {"detected": DETECTED, "checks": [{"name": "shapes", "state": "ok", "text": "W", "figure": "4 × d_in"}]}
    asked = {"field": "hook_name", "text": "Which hook point?", "required": True, "default": None, "choices": []}
    keys = []
    for state in ("receiving", "checking", "waiting", "failed", "cancelled"):
        known = {**report, "trial": TRIAL, "questions": [asked], "here": None, "ready": True}
        said = {} if state == "receiving" else known
        error = "the disk is full" if state == "failed" else ""
        row = SaeImport.objects.create(name=state, lm=lm, dataset=dataset, state=state, report=said, error=error)
        UploadFile.objects.create(of=row, name=f"{'a-long-name-' * 9}.pt", size=2000, received=900)
        keys.append(row.key)
    for state in ("queued", "failed", "done"):
        Addition.objects.create(kind="model", origin="hub", name=state, source="org/x", state=state, made_lm=lm)
    address = f"/s/{live.sae.public_id}/settings"
    return [
        live_server.url + path
        for path in (
            "/upload", *(f"/imports/{key}" for key in keys),
            "/jobs", *(f"/jobs/{run.pk}" for run in live.sae.runs.all()),
            f"/jobs/{computing.pk}/cancel", address, "/models", f"/models/{lm.pk}", "/datasets",
            f"/datasets/{dataset.pk}", *(f"/additions/{a.pk}" for a in Addition.objects.all()), "/login", "/",
        )
    ]  # fmt: skip


def faults(page: Page) -> list[str]:
    """What axe-core finds in both colour schemes."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        found += [f"{page.url} {scheme}: {fault}" for fault in looking.violations(page)]
    return found


def test_no_page_has_a_fault_that_axe_finds_or_scrolls_sideways(page: Page, pages: list[str]) -> None:
    found = []
    looking.still(page)
    for address in pages:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(address)
        found += faults(page)
        page.set_viewport_size({"width": 390, "height": 844})
        if sideways := looking.sideways(page):
            found.append(f"{address} is {sideways} px too wide")
    assert found == []


def test_an_account_has_none_either(page: Page, live_server: LiveServer) -> None:
    User.objects.create_user("ada", password="moonlight-97")
    page.goto(f"{live_server.url}/login")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("moonlight-97")
    page.get_by_label("Password").press("Enter")
    page.goto(f"{live_server.url}/account")
    page.get_by_role("textbox", name="Name", exact=True).fill("laptop")
    press(page, "Make a token")
    expect(page.get_by_text("shown this once")).to_be_visible()
    assert faults(page) == []
