"""What a link promises: the same numbers and contexts after another run, a new name, a cleaning and a restart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from sae_backend import cleaning, managing, registry
from sae_backend.models import Dataset, LanguageModel, Run, Sae
from tests.backend import demo, messages
from tests.e2e import crew
from tests.e2e.webserver import WebServer

pytestmark = pytest.mark.django_db(transaction=True)
KEPT = ("", "?int=b3&view=snip&ws=1", ".json", "/contexts?int=rnd", "/cite.json", "/embed", "/card.png")


@pytest.fixture(autouse=True)
def empty_queue() -> Iterator[None]:
    messages.forget()
    yield
    messages.forget()


@pytest.fixture
def web(site_environment: dict[str, str], tmp_path: Path) -> Iterator[WebServer]:
    server = WebServer({**site_environment, "DEBUG": "1"}, tmp_path)  # style sheets without a manifest
    server.start()
    yield server
    server.stop()


def computed(sae: Sae, dataset: Dataset, **options: Any) -> Run:
    run = crew.new_run(sae, dataset, **{**demo.QUICK, **options})
    messages.carry_out()
    run.refresh_from_db()
    assert run.state == Run.State.LIVE, run.error
    return run


def seen(web: WebServer, address: str) -> dict[str, Any]:
    """All that a pinned link leads to. Whether its run is the newest is no part of the promise."""
    found = {}
    for rest in KEPT:
        status, headers, body = web.raw("GET", f"{address}{rest}")
        assert status == 200, (rest, body[:200])
        found[rest] = headers["Content-Type"], body
    return found


def test_a_pinned_link_goes_on_showing_the_same(
    web: WebServer, sae: Sae, lm: LanguageModel, dataset: Dataset, settings: Any
) -> None:
    run = computed(sae, dataset)
    index = next(i for i in range(sae.d_sae) if web.ask("GET", f"/s/{sae.public_id}/{i}.json")[2]["stats"]["max_act"])
    live, pinned = f"/s/{sae.public_id}/{index}", f"/s/{sae.public_id}@r{run.number}/{index}"
    cited = web.ask("POST", f"{live}/cite.json?int=b3")[2]
    assert cited["url"].endswith(f"{pinned}?int=b3")
    before, live_before = seen(web, pinned), web.ask("GET", f"{live}.json")[2]
    assert len(re.findall(rb'<li class="ctx"', before[""][1])) > 1

    others = registry.register_dataset("other", "demo", lm, [("o.py", demo.text()[5000:])], demo.CTX_LEN, 512)
    computed(sae, others, dtype="bfloat16")
    name = sae.name
    managing.rename(sae, "quite another name")
    managing.rename(sae, name)
    Run.objects.filter(pk=run.pk).update(retired_at=timezone.now() - timedelta(days=9))
    settings.DROP_RETIRED_AFTER_DAYS = 1
    cleaning.clean()
    web.stop()
    web.start()

    assert seen(web, pinned) == before
    live_after = web.ask("GET", f"{live}.json")[2]
    assert live_after["dataset"] == "other" and live_after["stats"] != live_before["stats"]
    status, headers, _ = web.ask("GET", f"/s/quite-another-name@r{run.number}/{index}?int=b3")
    assert status == 302 and headers["Location"] == f"{pinned}?int=b3"
    prefix = f"/s/{sae.sha256[:8]}@r{run.number}/{index}.json"
    assert web.ask("GET", prefix)[2]["examples"] == web.ask("GET", f"{pinned}.json")[2]["examples"]


def test_a_superseded_run_that_nobody_has_shared_goes_after_its_days(
    client: Client, sae: Sae, dataset: Dataset, settings: Any
) -> None:
    first = computed(sae, dataset)
    assert client.get(f"/s/{sae.public_id}/0.json").status_code == 200
    computed(sae, dataset)
    Run.objects.filter(pk=first.pk).update(retired_at=timezone.now() - timedelta(days=9))
    cleaning.clean()
    assert Run.objects.get(pk=first.pk).state == Run.State.RETIRED  # kept for ever unless days are named
    settings.DROP_RETIRED_AFTER_DAYS = 1
    cleaning.clean()
    gone = client.get(f"/s/{sae.public_id}@r{first.number}/0.json")
    assert gone.status_code == 410 and "was dropped" in gone.json()["message"]
