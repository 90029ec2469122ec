"""The list of jobs and a job's page, in every state a run goes through."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from browser.queries import runs
from sae_backend import claims, queue, store, tasks
from sae_backend import runs as states
from sae_backend.celery import app
from sae_backend.models import Run, RunShard, SaeImport, Worker
from tests.backend import messages
from tests.browser import run_rows, sae_rows
from tests.browser.run_rows import CONTEXTS, ago

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
    assert client.get("/jobs.json").json() == {"jobs": [], "imports": [], "comparisons": [], "workers": []}
    assert "none is up: start one" in page


def test_the_whole_log_is_there_as_plain_text(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    for i in range(400):
        states.log(run.pk, f"line <{i}>", "warning" if i else "info")
    response = client.get(f"/jobs/{run.pk}/log")
    lines = response.content.decode().splitlines()
    assert response["Content-Type"] == "text/plain; charset=utf-8" and lines[-1].endswith(" warning line <399>")
    assert sum("line <" in line for line in lines) == 400
    assert f'href="/jobs/{run.pk}/log"' in get(client, f"/jobs/{run.pk}")
    assert client.get("/jobs/99999/log").status_code == 404


def test_a_run_goes_through_its_stages(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    assert stages(client, run) == ["current", "todo", "todo", "todo"]
    assert "Waiting for a worker" in get(client, f"/jobs/{run.pk}")
    sae_rows.start(run)
    sae_rows.do_contexts(run, shards=1)
    assert stages(client, run) == ["done", "current", "todo", "todo"]
    sae_rows.do_contexts(run)
    assert stages(client, run) == ["done", "done", "current", "todo"]
    sae_rows.load(run, sae_rows.statistics(run.sae.d_sae))
    assert stages(client, run) == ["done", "done", "done", "current"]
    store.seal(run.pk)
    store.publish(run.pk, sae_rows.FIGURES)
    assert stages(client, run) == ["done"] * 4
    page = get(client, f"/jobs/{run.pk}")
    assert "Open the SAE" in page and "data-poll" not in page


def test_progress_counts_finished_shards_and_the_claims_at_work(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    sae_rows.start(run)
    sae_rows.do_contexts(run, shards=1)
    assert client.get(f"/jobs/{run.pk}.json").json()["tokens_done"] == 32  # before any heartbeat
    claimed = claims.claim(run.pk, RunShard.Kind.CONTEXTS, 1, "gpu-7")
    assert claimed is not None
    claims.heartbeat(claimed, 16)
    data = client.get(f"/jobs/{run.pk}.json").json()
    assert data["tokens_done"] == 32 + 16 and data["tokens_total"] == 64
    shards = {kind: (count["done"], count["total"]) for kind, count in data["shards"].items()}
    assert shards == {"contexts": (1, 2), "latents": (0, 3)}
    assert [(w["worker"], w["kind"], w["lo"], w["hi"], w["attempt"]) for w in data["workers"]] == [
        ("gpu-7", "contexts", 2, 4, 1)
    ]
    page = get(client, f"/jobs/{run.pk}")
    assert "gpu-7" in page and 'aria-valuenow="75"' in page and 'aria-valuenow="60"' in page


@pytest.mark.usefixtures("still")
def test_the_same_figures_are_on_the_page_in_the_list_and_in_json(client: Client) -> None:
    run_rows.published()  # 0.5 seconds a token, 0.1 a latent, 6 to publish
    run = run_rows.computing(begun=100)
    run_rows.shard_done(run, CONTEXTS, 0, begun=100, done=0)
    run_rows.shard_held(run, CONTEXTS, 1, begun=0, progress=0, nth=2)
    data = client.get(f"/jobs/{run.pk}.json").json()
    assert data["tokens_done"] == 32 and data["rate"] == pytest.approx(0.32)
    assert data["rate_unit"] == "tokens/s" and data["seconds_left"] == pytest.approx(136)
    assert client.get("/jobs.json").json()["jobs"][0]["seconds_left"] == pytest.approx(136)
    page, listed = get(client, f"/jobs/{run.pk}"), get(client, "/jobs")
    assert "about <b>2 min</b> left in all" in page and "32 of 64 tokens" in page and "0.32 tokens/s" in page
    assert "1 needed another attempt" in page and "gpu-0" in page
    assert "2 min left" in listed and "0.32 tokens/s" in listed and "gpu-0" in listed


def test_time_stands_still_once_a_stage_or_a_run_has_ended(client: Client) -> None:
    run = sae_rows.publish().run
    moments = ("created_at", "started_at", "computed_at", "loaded_at", "live_at")
    long_ago = timezone.now() - timedelta(hours=1)
    at = [long_ago + timedelta(seconds=seconds) for seconds in (0, 10, 100, 140, 142)]
    times = dict(zip(moments, at, strict=True))
    Run.objects.filter(pk=run.pk).update(**times)
    for url in (f"/jobs/{run.pk}.json", "/jobs.json"):
        data = client.get(url).json()
        job = data["jobs"][0] if "jobs" in data else data
        assert [stage["seconds"] for stage in job["stages"]] == [10, 90, 40, 2], url
    page = get(client, f"/jobs/{run.pk}")
    assert "took <b>2:12</b>" in page and re.search(r'<span class="t r">[\d.]+\Wlatents/s', page)
    stopped = {"stopped_at": at[2] + timedelta(seconds=20), "loaded_at": None, "live_at": None}
    Run.objects.filter(pk=run.pk).update(state=Run.State.CANCELLED, **stopped)
    seconds = [stage["seconds"] for stage in client.get(f"/jobs/{run.pk}.json").json()["stages"]]
    assert seconds == [10, 90, 20, None]


def test_indexes_are_counted_while_a_run_is_published(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    sae_rows.start(run)
    sae_rows.do_contexts(run)
    sae_rows.load(run, sae_rows.statistics(run.sae.d_sae))
    counts = lambda: [client.get(f"/jobs/{run.pk}.json").json()["stages"][3][key] for key in ("done", "total")]  # noqa: E731
    assert counts() == [0, runs.INDEXES]
    store.seal(run.pk)
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from pg_indexes where tablename = any(%s)", [list(store.tables(run.pk))])
        assert cursor.fetchone() == (runs.INDEXES,)
    assert counts() == [runs.INDEXES, runs.INDEXES]


def stalled(client: Client, run: Run) -> bool:
    return client.get(f"/jobs/{run.pk}.json").json()["stalled"]


def test_a_run_that_nobody_touches_says_so_and_what_to_do(client: Client) -> None:
    messages.forget()
    run = run_rows.computing(begun=3 * 3600, sign=3 * 3600)
    page = get(client, f"/jobs/{run.pk}")
    assert "No worker has touched this run for 3 h. Nothing of it is in the queue" in page
    assert "start a worker (make worker" in page and "left" not in page.split("<main")[1].split("Stages")[0]
    assert stalled(client, run) and "last sign 3 h ago" in get(client, "/jobs")
    tasks.compute_contexts.delay(run.pk, 0)
    assert "1 piece of it or others waits in the queue, and no worker takes" in get(client, f"/jobs/{run.pk}")
    messages.forget()
    run_rows.shard_held(run, CONTEXTS, 0, begun=4 * 3600, progress=3, sign=3 * 3600)
    assert "gpu-0 began a part and fell silent" in get(client, f"/jobs/{run.pk}")
    Run.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now())
    assert not stalled(client, run)


def test_a_run_lies_still_and_says_so_where_redis_is_away(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_rows.computing(begun=3600, sign=3600)
    monkeypatch.setattr(app.conf, "broker_read_url", "redis+socket:///nowhere/redis.sock")
    assert "Redis, which carries the work to the workers, does not answer" in get(client, f"/jobs/{run.pk}")


def test_a_run_behind_one_that_moves_waits_and_is_not_stalled(client: Client) -> None:
    first, second = run_rows.computing(), sae_rows.new_run(sae_rows.new_sae("b", slug="b"))
    Run.objects.filter(pk=second.pk).update(created_at=ago(3600))
    assert not stalled(client, second) and "Queued, next" in get(client, "/jobs")
    assert "It begins when the jobs before it are done" in get(client, f"/jobs/{second.pk}")
    Run.objects.filter(pk=first.pk).update(heartbeat_at=ago(3600))
    assert stalled(client, second)


def test_a_failed_run_says_why_and_where(client: Client) -> None:
    run = sae_rows.new_run(sae_rows.new_sae())
    sae_rows.start(run)
    states.fail(run.pk, "W_dec is 768 × 24576; expected 24576 × 768 <b>")
    assert stages(client, run) == ["done", "failed", "todo", "todo"]
    page = get(client, f"/jobs/{run.pk}")
    before = page.partition('id="h-q"')[0]  # the queue stands below the job
    assert before.count("W_dec is 768 × 24576; expected 24576 × 768 &lt;b&gt;") == 2  # the note and the log
    assert "data-poll" not in page and "&lt;b&gt;" in get(client, "/jobs")


REASONS = {
    "5 workers ended while they computed contexts 0 to 64: perhaps for want of memory": ["#rerun"],
    "/store cannot be used: [Errno 28] No space left on device. It needs free space": ["#runs", "#rerun"],
    "900 of 1,000 latents fire on a token on average: it is read wrongly": ["/upload", "#rerun"],
    "": ["#rerun"],
}


def settings_of(run: Run) -> str:
    return f"/s/{run.sae.public_id}/settings"


@pytest.mark.parametrize("reason", REASONS)
def test_the_reason_of_a_failure_leads_to_where_it_can_be_mended(client: Client, settings: Any, reason: str) -> None:
    settings.OPEN_TO_ALL = True
    run = sae_rows.new_run(sae_rows.new_sae())
    row = SaeImport.objects.create(name="x", lm=run.sae.lm, sae=run.sae, run=run, state="done")
    states.fail(run.pk, reason)
    note = get(client, f"/jobs/{run.pk}").partition('id="why"')[2].partition("</div></div>")[0]
    wanted = [f"{settings_of(run)}{place}" if place.startswith("#") else place for place in REASONS[reason]]
    assert re.findall(r'href="([^"]+)"', note) == [*wanted, f"/imports/{row.key}?look"]
    assert ("fewer tokens, or in bfloat16" in note) == ("memory" in reason)
    assert f'href="/jobs/{run.pk}#why"' in get(client, "/jobs")
    settings.OPEN_TO_ALL = False  # the settings are for whoever brought it in
    assert settings_of(run) not in get(client, f"/jobs/{run.pk}")


@pytest.mark.usefixtures("still")
def test_workers_are_listed_with_what_they_are_at_and_their_last_sign(client: Client) -> None:
    run, row = run_rows.computing(), SaeImport.objects.create(name="x", lm=sae_rows.language_model(), state="checking")
    for name, task, target, sign in (
        ("gpu-0@lab", "compute_contexts", run.pk, 2), ("gpu-1@lab", "check_import", row.pk, 1),
        ("gpu-2@lab", "load_latents", run.pk, 3 * 3600), ("gpu-3@lab", "", None, 4), ("old@lab", "", None, 2 * 86400),
    ):  # fmt: skip
        times = {"since": run_rows.ago(90), "started_at": run_rows.ago(9000), "seen_at": run_rows.ago(sign)}
        Worker.objects.create(name=name, queues="compute", task=task, target=target, memory=3 << 30, **times)
    page, job = get(client, "/jobs"), get(client, f"/jobs/{run.pk}")
    for shown in (page, job):
        table = shown.partition('id="h-k"')[2]
        assert f'<a href="/jobs/{run.pk}">job {run.pk}, contexts</a>' in table and "3.0" in table
        assert re.search(r"\b1:30\b", table)
        assert f'<a href="/imports/{row.key}">checks an upload</a>' in table and "old@lab" not in table
        assert table.count("At work") == 2 and table.count("No sign") == 1 and table.count("Idle") == 1
    told = {w["name"]: (w["alive"], w["task"]) for w in client.get("/jobs.json").json()["workers"]}
    assert told["gpu-2@lab"] == (False, "load_latents") and told["gpu-3@lab"] == (True, None)
    assert 'id="h-k"' in get(client, "/jobs/others")


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


@pytest.mark.usefixtures("still")
def test_the_log_tells_who_began_and_what_each_stage_took(client: Client) -> None:
    messages.forget()
    run = sae_rows.new_run(sae_rows.new_sae())
    for index in range(2):
        claimed = claims.claim(run.pk, CONTEXTS, index, "gpu-7")
        assert claimed is not None
        claims.finish_contexts(claimed, checksum=0)
    Run.objects.filter(pk=run.pk).update(started_at=ago(32))
    queue.continue_after_contexts(run.pk)
    Run.objects.filter(pk=run.pk).update(computed_at=ago(20))
    run.shards.update(state=RunShard.State.DONE)
    queue.continue_after_latents(run.pk)
    log = [line["text"] for line in client.get(f"/jobs/{run.pk}.json").json()["log"]]
    assert log[0] == "begun by gpu-7"
    assert re.match(r"all contexts are encoded: 64 tokens in 32\.0 s, 2 a second; statistics", log[1])
    assert re.match(r"all latents are loaded: 300 latents in 20\.0 s, 15 a second; indexes", log[2])
    messages.forget()


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
        run = sae_rows.new_run(published.sae)
    with CaptureQueriesContext(connection) as many:
        get(client, "/jobs")
    with CaptureQueriesContext(connection) as one:
        get(client, f"/jobs/{published.run.pk}")
    with CaptureQueriesContext(connection) as waiting:
        get(client, f"/jobs/{run.pk}")
    assert (len(few), len(many), len(one), len(waiting)) == (6, 10, 11, 10)
