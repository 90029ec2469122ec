"""A run cancelled and resumed by a person: a real worker computes it, a real browser shows it."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from sae_backend.models import Dataset, RunShard, Sae
from tests.e2e import crew

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
PIECES = {"shard_contexts": 1, "shard_latents": 16}


def test_a_run_is_cancelled_and_resumed_on_its_page_which_follows_it_to_the_end(
    workers: crew.Workers, sae: Sae, dataset: Dataset, page: Page, live_server: Any, settings: Any
) -> None:
    settings.OPEN_TO_ALL = True
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    settings.STALLED_SECONDS = 600  # while the worker is stopped
    run = crew.new_run(sae, dataset, **PIECES)
    crew.Kept(workers, run, crew.CONTEXTS, stock=8)  # the run cannot end before it is cancelled
    page.goto(f"{live_server}/jobs/{run.pk}")
    expect(page.get_by_text("Queued, next").first).to_be_visible()
    worker = workers.start()
    workers.wait_for(lambda: crew.done(run) >= 2)
    worker.send_signal(signal.SIGSTOP)
    expect(page.get_by_text("Contexts, stage 2 of 4")).to_be_visible()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.get_by_text("Cancelled at Contexts")).to_be_visible()
    kept = set(run.shards.filter(state=RunShard.State.DONE).values_list("pk", flat=True))
    worker.send_signal(signal.SIGCONT)
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", name="Computed")).to_be_visible(timeout=1000 * crew.PATIENCE)
    assert crew.live(run) and len(kept) >= 2
    assert set(run.shards.filter(pk__in=kept).values_list("attempts", flat=True)) == {1}  # nothing is computed twice
    assert crew.logged(run, "measured: L0 16.0, FVU ") == 1 and faults == []
    page.get_by_role("link", name="Open the SAE").click()
    expect(page.get_by_role("heading", name=sae.name)).to_be_visible()
