"""Cancelling and resuming a job from its page and by programs: who may, and that only a POST changes anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from browser import accounts
from sae_backend.launch import Launcher
from sae_backend.models import Run, RunShard, Sae
from tests.backend import messages
from tests.browser import run_rows, sae_rows
from tests.browser.run_rows import CONTEXTS

pytestmark = pytest.mark.django_db(transaction=True)
ADDRESSES = ("cancel", "resume", "cancel.json", "resume.json")


@pytest.fixture
def ada() -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def run(ada: User) -> Run:
    """A run with half of its contexts done, which ada has asked for, of an SAE that nobody here brought in."""
    messages.forget()
    run = run_rows.computing()
    Run.objects.filter(pk=run.pk).update(owner=ada)
    run_rows.shard_done(run, CONTEXTS, 0, begun=20, done=10)
    return run


@pytest.fixture
def member(client: Client, ada: User) -> Client:
    """Who has asked for the run."""
    return logged_in(client, ada)


def logged_in(client: Client, user: User) -> Client:
    client.force_login(user)
    return client


def state(run: Run) -> str:
    run.refresh_from_db()
    return run.state


def test_a_get_changes_nothing(member: Client, run: Run) -> None:
    for address in ADDRESSES:
        assert member.get(f"/jobs/{run.pk}/{address}").status_code == (405 if ".json" in address else 200)
    assert state(run) == "computing" and messages.take() is None


def refused(client: Client, run: Run, **request: Any) -> None:
    """Sees no button in any state, and is told who may when asking all the same."""
    before = state(run)
    for address in ADDRESSES:
        response = client.post(f"/jobs/{run.pk}/{address}", **request)
        assert response.status_code == 403 and "for who asked for it" in response.content.decode(), address
    for shown in ("computing", "cancelled", "failed"):
        Run.objects.filter(pk=run.pk).update(state=shown)
        for page in (f"/jobs/{run.pk}", f"/jobs/{run.pk}/live", f"/s/{run.sae.public_id}"):
            html = client.get(page, **request).content.decode()
            assert 'id="cancel"' not in html and 'id="resume"' not in html and "/settings" not in html, (shown, page)
        assert client.get(f"/jobs/{run.pk}.json", **request).json()["may_steer"] is False
    Run.objects.filter(pk=run.pk).update(state=before)


def test_nobody_else_may_on_pages_or_by_programs(run: Run) -> None:
    eve = User.objects.create_user("eve")
    refused(Client(), run)
    refused(logged_in(Client(), eve), run)
    refused(Client(), run, headers={"Authorization": f"Bearer {accounts.new_token(eve, 'cluster')[1]}"})
    stranger = logged_in(Client(), eve).post(f"/jobs/{run.pk}/cancel").content.decode()
    assert "not yours to cancel" in stranger and 'href="/login?next=' not in stranger.partition("<main")[2]
    assert 'href="/login?next=' in Client().post(f"/jobs/{run.pk}/cancel").content.decode().partition("<main")[2]


def test_who_brought_in_the_sae_and_staff_may_too(run: Run) -> None:
    brought, staff = User.objects.create_user("emmy"), User.objects.create_user("grace", is_staff=True)
    Sae.objects.filter(pk=run.sae_id).update(owner=brought)
    for user in (brought, staff):
        assert logged_in(Client(), user).post(f"/jobs/{run.pk}/cancel.json").json()["done"] is True
        assert logged_in(Client(), user).post(f"/jobs/{run.pk}/resume.json").json()["done"] is True


def test_what_nobody_here_has_asked_for_is_the_staffs(member: Client, run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(owner=None)
    refused(member, run)


def test_everybody_may_on_a_site_that_is_open_to_all(client: Client, run: Run, settings: Any) -> None:
    settings.OPEN_TO_ALL = True
    assert 'id="cancel"' in client.get(f"/jobs/{run.pk}").content.decode()
    assert client.get(f"/jobs/{run.pk}.json").json()["may_steer"] is True
    assert client.post(f"/jobs/{run.pk}/cancel")["Location"] == f"/jobs/{run.pk}"
    assert state(run) == "cancelled"


def test_a_job_is_cancelled_and_resumed_from_what_is_done(member: Client, run: Run) -> None:
    assert f'href="/jobs/{run.pk}/cancel"' in member.get(f"/jobs/{run.pk}").content.decode()
    assert "Cancel job" in member.get(f"/jobs/{run.pk}/cancel").content.decode()
    page = member.post(f"/jobs/{run.pk}/cancel", follow=True).content.decode()
    assert state(run) == "cancelled"
    assert "Cancelled at Contexts" in page and f'action="/jobs/{run.pk}/resume"' in page and 'id="cancel"' not in page
    assert messages.take() is None
    page = member.post(f"/jobs/{run.pk}/resume", follow=True).content.decode()
    assert state(run) == "computing" and 'id="cancel"' in page and 'id="resume"' not in page
    assert messages.take() is not None


def test_a_failed_job_shows_its_remedy_and_a_button_to_resume(member: Client, run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(state=Run.State.FAILED, error="the disk is full; free 3 GB")
    page = member.get(f"/jobs/{run.pk}").content.decode()
    assert "the disk is full; free 3 GB" in page and f'action="/jobs/{run.pk}/resume"' in page
    assert "Failed at Contexts" in page
    inside = member.get(f"/s/{run.sae.public_id}").content.decode()
    assert f'action="/jobs/{run.pk}/resume"' in inside


def test_a_stalled_job_can_be_cancelled_and_resumed(member: Client, run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(heartbeat_at=run_rows.ago(3600))
    page = member.get(f"/jobs/{run.pk}").content.decode()
    assert 'id="cancel"' in page and 'id="resume"' in page
    member.post(f"/jobs/{run.pk}/resume")
    assert state(run) == "computing" and messages.take() is not None
    assert member.get(f"/jobs/{run.pk}.json").json()["stalled"] is False


def test_programs_learn_whether_anything_changed(member: Client, run: Run) -> None:
    first, second = (member.post(f"/jobs/{run.pk}/cancel.json").json() for _ in range(2))
    assert (first["done"], second["done"], first["job"]["state"]) == (True, False, "cancelled")
    again = member.post(f"/jobs/{run.pk}/resume.json").json()
    assert again["done"] is True and again["job"]["state"] == "computing"


def test_a_finished_job_has_nothing_to_steer(member: Client, ada: User) -> None:
    run = sae_rows.publish().run
    Run.objects.filter(pk=run.pk).update(owner=ada)
    for action in ("cancel", "resume"):
        assert f"Nothing to {action}" in member.get(f"/jobs/{run.pk}/{action}").content.decode()
        assert member.post(f"/jobs/{run.pk}/{action}.json").json()["done"] is False
    assert state(run) == "live" and run.shards.exclude(state=RunShard.State.DONE).count() == 0


def test_a_form_of_another_site_is_refused(run: Run, ada: User) -> None:
    client = logged_in(Client(enforce_csrf_checks=True), ada)
    for address in ADDRESSES:
        assert client.post(f"/jobs/{run.pk}/{address}").status_code == 403
    assert state(run) == "computing"
    form = client.get(f"/jobs/{run.pk}/cancel").content.decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert token is not None
    client.post(f"/jobs/{run.pk}/cancel", {"csrfmiddlewaretoken": token[1]})
    assert state(run) == "cancelled"


def test_a_job_that_is_not_there_is_not_found(member: Client, db: None) -> None:
    for address in ADDRESSES:
        assert member.post(f"/jobs/99/{address}").status_code == 404


@pytest.mark.parametrize(
    ("host", "open_to_all"),
    [(None, "1"), ("", "1"), ("127.0.0.1", "1"), ("localhost", "1"), ("::1", "1"), ("0.0.0.0", "0"), ("::", "0"),
     ("10.0.0.7", "0"), ("lab.example.org", "0")],
)  # fmt: skip
def test_the_launcher_opens_a_site_that_only_its_machine_reaches_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str | None, open_to_all: str
) -> None:
    for name, value in {"HOST": host, "OPEN_TO_ALL": None, "ALLOWED_HOSTS": None}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    environment = Launcher(tmp_path).environment
    assert environment["OPEN_TO_ALL"] == open_to_all
    assert ("ALLOWED_HOSTS" in environment) is (open_to_all == "1")
    for told in "01":
        monkeypatch.setenv("OPEN_TO_ALL", told)
        assert Launcher(tmp_path).environment["OPEN_TO_ALL"] == told
