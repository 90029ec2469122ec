"""The list of jobs and a job's page, in every state a run goes through."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from browser.queries import runs
from sae_backend import claims, store
from sae_backend import runs as states
from sae_backend.models import Run, RunShard, SaeImport
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db(transaction=True)


def get(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def stages(client: Client, run: Run) -> list[str]:
    return [stage["state"] for stage in client.get(f"/jobs/{run.pk}.json").json()["stages"]]


def test_nothing_yet(client: Client) -> None:
    page = get(client, "/jobs")
    assert "nothing waits or runs" in page and "data-poll" not in page
    assert client.get("/jobs.json").json() == {"jobs": [], "imports": []}


def test_a_run_goes_through_its_stages(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    assert stages(client, run) == ["todo", "todo", "todo"]
    assert "Waiting for a worker" in get(client, f"/jobs/{run.pk}")
    sae_rows.start(run)
    sae_rows.do_contexts(run, shards=1)
    assert stages(client, run) == ["current", "todo", "todo"]
    sae_rows.do_contexts(run)
    assert stages(client, run) == ["done", "current", "todo"]
    sae_rows.load(run, sae_rows.statistics(run.sae.d_sae))
    assert stages(client, run) == ["done", "done", "current"]
    store.seal(run.pk)
    store.publish(run.pk, sae_rows.FIGURES)
    assert stages(client, run) == ["done", "done", "done"]
    page = get(client, f"/jobs/{run.pk}")
    assert "Open the SAE" in page and "data-poll" not in page


def test_progress_counts_finished_shards_and_the_claims_at_work(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    sae_rows.start(run)
    sae_rows.do_contexts(run, shards=1)
    assert client.get(f"/jobs/{run.pk}.json").json()["tokens"]["done"] == 32  # before any heartbeat
    claimed = claims.claim(run.pk, RunShard.Kind.CONTEXTS, 1, "gpu-7")
    assert claimed is not None
    claims.heartbeat(claimed, 16)
    data = client.get(f"/jobs/{run.pk}.json").json()
    assert data["tokens"]["done"] == 32 + 16 and data["tokens"]["total"] == 64
    assert data["shards"] == {"contexts": {"done": 1, "total": 2}, "latents": {"done": 0, "total": 3}}
    page = get(client, f"/jobs/{run.pk}")
    assert "gpu-7" in page and 'aria-valuenow="75"' in page and 'aria-valuenow="60"' in page


def test_time_left_follows_from_the_measured_rate() -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    now = timezone.now()
    run.state, run.started_at, run.heartbeat_at = Run.State.COMPUTING, now - timedelta(seconds=30), now
    run.tokens_total, run.tokens_done = 1000, 750
    progress = runs.Progress(run, now=now)
    assert progress.rate == 25 and progress.left == 10 and progress.current is progress.stages[0]
    run.tokens_done = 0
    assert runs.Progress(run, now=now).left is None


def test_a_run_without_a_sign_of_its_worker_is_stalled(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    sae_rows.start(run)
    long_ago = timezone.now() - timedelta(hours=3)
    Run.objects.filter(pk=run.pk).update(heartbeat_at=long_ago)
    assert client.get(f"/jobs/{run.pk}.json").json()["stalled"] is False  # nobody holds a part of it: it waits
    assert claims.claim(run.pk, RunShard.Kind.CONTEXTS, 0, "worker-1") is not None
    Run.objects.filter(pk=run.pk).update(heartbeat_at=long_ago)
    assert client.get(f"/jobs/{run.pk}.json").json()["stalled"] is True
    page = get(client, f"/jobs/{run.pk}")
    assert (
        "No worker has given a sign since 3 h ago" in page and "left" not in page.split("<main")[1].split("Stages")[0]
    )
    assert "last sign 3 h ago" in get(client, "/jobs")
    Run.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now())
    assert client.get(f"/jobs/{run.pk}.json").json()["stalled"] is False


def test_a_failed_run_says_why_and_where(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    sae_rows.start(run)
    states.fail(run.pk, "W_dec is 768 × 24576; expected 24576 × 768 <b>")
    assert stages(client, run) == ["failed", "todo", "todo"]
    page = get(client, f"/jobs/{run.pk}")
    assert page.count("W_dec is 768 × 24576; expected 24576 × 768 &lt;b&gt;") == 2  # the note and the log
    assert "data-poll" not in page and "&lt;b&gt;" in get(client, "/jobs")


def test_imports_that_are_not_done_are_listed_with_their_error(client: Client) -> None:
    lm = sae_rows.language_model()
    for state, error in (("queued", ""), ("failed", "no key looks like a decoder"), ("done", "")):
        SaeImport.objects.create(name=f"{state}.pt", source="/data", lm=lm, state=state, error=error)
    page = get(client, "/jobs")
    assert "no key looks like a decoder" in page and "queued.pt" in page and "done.pt" not in page
    assert [i["state"] for i in client.get("/jobs.json").json()["imports"]] == ["failed", "queued"]


def test_the_live_part_is_small_and_polls_itself_until_the_run_is_over(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    part = get(client, f"/jobs/{run.pk}/live")
    assert f'data-poll="/jobs/{run.pk}/live"' in part and "<html" not in part and len(part) < 6000
    assert part[:200] in get(client, f"/jobs/{run.pk}")
    inside = get(client, f"/jobs/{run.pk}/live?inside=1")
    assert "<h1" not in inside and "data-reload" not in inside
    states.fail(run.pk, "stopped")
    assert "data-reload" in get(client, f"/jobs/{run.pk}/live?inside=1")
    assert client.get(f"/jobs/{run.pk}/live")["Cache-Control"].startswith("max-age=0")


def test_the_log_shows_its_last_lines_in_order(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    for i in range(runs.LOG_LINES + 5):
        states.log(run.pk, f"line {i}.")
    found = re.findall(r"line (\d+)\.", get(client, f"/jobs/{run.pk}"))
    assert found == [str(i) for i in range(5, runs.LOG_LINES + 5)]


def test_jobs_cost_as_many_queries_for_one_run_as_for_many(client: Client) -> None:
    published = sae_rows.publish()
    with CaptureQueriesContext(connection) as few:
        get(client, "/jobs")
    for _ in range(5):
        sae_rows.new_run(published.sae)
    with CaptureQueriesContext(connection) as many:
        get(client, "/jobs")
    with CaptureQueriesContext(connection) as one:
        get(client, f"/jobs/{published.run.pk}")
    assert len(few) + 1 == len(many) == 4 and len(one) == 4
