"""Which jobs are listed, who asked for them, and where each leads."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from sae_backend.models import Comparison, Run, SaeImport
from tests.browser import run_rows, sae_rows

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def jobs() -> dict[str, Run]:
    ada = User.objects.create_user("ada")
    live = sae_rows.publish(sae_rows.new_sae("shown", slug="shown")).run
    made = {"done": live}
    for state in ("failed", "cancelled"):
        run = sae_rows.new_run(sae_rows.new_sae(state, slug=state))
        Run.objects.filter(pk=run.pk).update(state=state, error="the disk is full", owner=ada)
        made[state] = run
    made["open"] = run_rows.computing(sae_rows.new_sae("under-way", slug="under-way"))
    for state in SaeImport.State.values:
        SaeImport.objects.create(name=f"import-{state}", source="/x", lm=live.sae.lm, state=state, owner=ada)
    return made


def listed(client: Client, state: str) -> tuple[set[int], set[str]]:
    data = client.get("/jobs.json", {"state": state} if state else {}).json()
    return {job["id"] for job in data["jobs"]}, {row["state"] for row in data["imports"]}


ON_THEIR_WAY = {"receiving", "checking", "waiting", "queued", "running"}


def test_each_choice_lists_its_jobs_and_imports(client: Client, jobs: dict[str, Run]) -> None:
    assert listed(client, "") == ({run.pk for run in jobs.values()}, ON_THEIR_WAY | {"failed"})
    imports = {"done": set(), "failed": {"failed"}, "cancelled": {"cancelled"}, "open": ON_THEIR_WAY}
    for state, run in jobs.items():
        assert listed(client, state) == ({run.pk}, imports[state]), state
    assert listed(client, "nonsense") == listed(client, "")


def test_the_page_marks_the_choice_and_its_live_part_keeps_it(client: Client, jobs: dict[str, Run]) -> None:
    page = client.get("/jobs?state=open").content.decode()
    assert '<a href="/jobs?state=open" aria-current="page">Under way</a>' in page
    assert 'data-poll="/jobs/live?state=open"' in page
    part = client.get("/jobs/live?state=failed").content.decode()
    assert "import-failed" in part and "import-queued" not in part and "under-way" not in part
    assert "data-poll" not in client.get("/jobs?state=failed").content.decode()


def test_comparisons_are_listed_by_state_with_what_they_say_and_lead_to_their_page(client: Client) -> None:
    ada, saes = User.objects.create_user("ada"), [sae_rows.new_sae(f"sae-{i}", slug=f"sae-{i}") for i in range(6)]
    more = {"running": {"stage": "both on the same text", "done": 100, "total": 400, "unit": "tokens"},
            "failed": {"error": "it takes 400 GB of memory"}}  # fmt: skip
    for state, other in zip(Comparison.State.values, saes[1:], strict=True):
        over = {} if state in ("queued", "running") else {"done_at": timezone.now()}
        Comparison.objects.create(a=saes[0], b=other, state=state, owner=ada, **over, **more.get(state, {}))
    for chosen, states in (
        ("", ["queued", "running", "failed", "done"]), ("open", ["queued", "running"]), ("done", ["done"]),
        ("failed", ["failed"]), ("cancelled", ["cancelled"]),
    ):  # fmt: skip
        found = client.get("/jobs.json", {"state": chosen}).json()["comparisons"]
        assert [row["state"] for row in found] == states, chosen
        part = client.get("/jobs/live", {"state": chosen}).content.decode()
        assert all(f'href="{row["url"].replace("&", "&amp;")}"' in part for row in found), chosen
        assert ("data-poll" in part) == ("queued" in states), chosen
    assert found[0]["a"] == saes[0].public_id and found[0]["asked_by"] == "ada"
    page = client.get("/jobs").content.decode()
    assert "Both on the same text: 100 of 400 tokens" in page and "it takes 400 GB of memory" in page


def test_imports_lead_to_their_pages_and_say_who_asked(client: Client, jobs: dict[str, Run]) -> None:
    page = client.get("/jobs").content.decode()
    for row in SaeImport.objects.filter(state__in=["checking", "waiting", "failed"]):
        assert f'href="/imports/{row.key}"' in page
    assert "waits for a choice" in page and ">ada</td>" in page


def test_where_things_lie_on_the_server_is_for_staff_alone(client: Client) -> None:
    path, error = "/srv/secret/sae.pt", "There is no file or folder /srv/secret/sae.pt."
    SaeImport.objects.create(name="a", source=path)
    row = SaeImport.objects.create(name="b", source=path, state="failed", error=error)
    for address in ("/jobs", "/jobs/live", "/jobs.json", f"/imports/{row.key}", f"/imports/{row.key}.json"):
        page = client.get(address).content.decode()
        assert "secret" not in page and (address == "/jobs.json" or "sae.pt" in page), address
    client.force_login(User.objects.create_user("root", is_staff=True))
    assert client.get("/jobs").content.decode().count(path) == 2


def test_a_failed_job_leads_to_computing_it_otherwise_and_to_how_it_was_read(
    client: Client, jobs: dict[str, Run], settings: object
) -> None:
    settings.OPEN_TO_ALL = True  # type: ignore[attr-defined]
    run = jobs["failed"]
    row = SaeImport.objects.create(name="x", lm=run.sae.lm, sae=run.sae, run=run, state="done")
    page = client.get(f"/jobs/{run.pk}").content.decode()
    assert f'href="/s/{run.sae.public_id}/settings#rerun"' in page and f'href="/imports/{row.key}?look"' in page
    assert f'action="/jobs/{run.pk}/resume"' in page
