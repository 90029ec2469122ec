"""Faults of the database and of Redis: which pass by themselves, and what a person reads of the others."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from django.db import Error, connection

from sae_backend import faults, jobs, pulse, queue, supervision
from sae_backend.launch import ROOT
from sae_backend.models import Run, SaeImport
from tests.backend import demo, messages

pytestmark = pytest.mark.django_db(transaction=True)


def raised(code: str) -> Error:
    """What Django makes of an error of PostgreSQL's."""
    with pytest.raises(Error) as caught, connection.cursor() as cursor:
        cursor.execute(f"do $$ begin raise exception 'it cannot' using errcode = '{code}'; end $$")
    return caught.value


PASS = {"57P01": "restart", "57P03": "starting", "53300": "connections", "40P01": "deadlock", "55P03": "lock"}


@pytest.mark.parametrize("code", PASS, ids=PASS.values())
def test_a_database_that_is_away_or_busy_is_waited_for(code: str) -> None:
    assert faults.passes(raised(code))


STAY = {
    "53100": "PostgreSQL cannot write: it cannot. It needs free space for its data; make some, then resume the run",
    "53200": "PostgreSQL has too little memory: it cannot. Give it more, then resume the run",
    "58030": "PostgreSQL cannot go on: it cannot. Its log says more; mend that, then resume the run",
}


@pytest.mark.parametrize("code", STAY)
def test_what_a_person_has_to_mend_is_a_sentence(code: str) -> None:
    error = raised(code)
    assert not faults.passes(error) and faults.sentence(error) == STAY[code]


def test_a_fault_of_ours_is_not_waited_for() -> None:
    assert not faults.passes(raised("42P01")) and not faults.passes(ValueError("no"))


def test_a_connection_that_was_cut_is_waited_for() -> None:
    with pytest.raises(Error) as caught, connection.cursor() as cursor:
        cursor.execute("select pg_terminate_backend(pg_backend_pid())")
    connection.close()
    assert faults.passes(caught.value)


IMPORT = """
import django; django.setup()
from sae_backend import jobs, queue
jobs.import_sae({pk})
try:
    queue.waiting()
except ConnectionError as error:
    print(error)
"""


def test_without_redis_an_import_is_done_and_its_run_waits_for_the_sweep_that_finds_it(
    site_environment: dict[str, str],
) -> None:
    lm = demo.a_language_model()
    row = demo.an_import(lm, demo.a_dataset(lm))
    away = {"REDIS_URL": "unix:///nowhere/redis.sock?db=0", "DJANGO_SETTINGS_MODULE": "sae_backend.settings"}
    process = subprocess.run(
        [sys.executable, "-c", IMPORT.format(pk=row.pk)],
        env={**site_environment, **away}, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.stdout.startswith("Redis does not answer: "), process.stderr
    row.refresh_from_db()
    assert (row.state, row.error) == (SaeImport.State.DONE, "") and row.run is not None
    assert row.run.state == Run.State.QUEUED
    messages.forget()
    assert queue.sweep(0) == 1 and queue.waiting() == 1


def test_nobody_is_called_silent_because_the_database_was_away(settings: Any) -> None:
    """After an outage workers have the time to give a sign before anybody looks for those who do not."""
    lm = demo.a_language_model()
    run = jobs.new_run(demo.a_sae(lm), demo.a_dataset(lm), **demo.QUICK)
    messages.forget()
    Run.objects.filter(pk=run.pk).update(heartbeat_at="2001-01-01T00:00:00Z")
    assert supervision._look(calm=False) and queue.waiting() == 0
    assert supervision._look(calm=True) and queue.waiting() > 0
    messages.forget()


def test_work_is_left_when_its_sign_of_life_is_refused(settings: Any) -> None:
    settings.WORKER_HEARTBEAT_SECONDS = 0.01
    answers = iter([True, True, False])
    with pytest.raises(pulse.Abandoned), pulse.Pulse(lambda done: next(answers, False)) as beats:
        for done in range(10_000):
            time.sleep(0.01)
            beats.report(done)
    assert done >= 2


def test_a_sign_of_life_that_the_database_does_not_take_is_followed_by_another(settings: Any) -> None:
    settings.WORKER_HEARTBEAT_SECONDS = 0.01
    seen: list[int] = []

    def beat(done: int) -> bool:
        seen.append(done)
        if len(seen) == 1:
            with connection.cursor() as cursor:
                cursor.execute("select pg_terminate_backend(pg_backend_pid())")
        with connection.cursor() as cursor:
            cursor.execute("select 1")
        return True

    deadline = time.monotonic() + 60
    with pulse.Pulse(beat) as beats:
        while len(seen) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            beats.report(7)
