"""Speed and time left: measured over the recent past, and by earlier runs for the stages to come."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from browser.queries import pace, runs
from browser.queries.pace import Piece
from browser.queries.progress import Progress
from sae_backend.models import Run
from tests.browser import run_rows, sae_rows
from tests.browser.run_rows import CONTEXTS, LATENTS

pytestmark = pytest.mark.usefixtures("still")
NOW = timezone.now()


def piece(begun: float, known: float, items: float, worker: str = "gpu-0") -> Piece:
    """What a worker did from so many seconds ago to so many."""
    return Piece(worker, NOW - timedelta(seconds=begun), NOW - timedelta(seconds=known), items)


def test_speed_is_that_of_the_recent_past_and_not_the_mean() -> None:
    slow, fast = piece(1000, 120, 880), piece(120, 0, 1200)
    assert pace.rate([slow, fast], NOW) == pytest.approx(10)
    assert pace.rate([slow, piece(120, 60, 1200), piece(60, 0, 0)], NOW) == pytest.approx(20)  # the last one just begun


def test_a_piece_longer_than_the_window_counts_whole() -> None:
    assert pace.rate([piece(1800, 30, 885)], NOW) == pytest.approx(0.5)
    assert pace.rate([piece(1800, 300, 750), piece(300, 0, 0)], NOW) == pytest.approx(0.5)  # nothing known since


def test_workers_add_up_and_one_that_fell_silent_does_not_count() -> None:
    here, there = piece(50, 0, 500), piece(20, 10, 30, "gpu-1")
    gone = piece(500, 200, 10_000, "gpu-2")
    assert pace.rate([here, there, gone], NOW) == pytest.approx(10 + 3)


def test_time_between_pieces_counts() -> None:
    assert pace.rate([piece(100, 80, 200), piece(20, 0, 200)], NOW) == pytest.approx(4)


def test_nothing_known_is_no_speed() -> None:
    assert pace.rate([], NOW) is None and pace.rate([piece(30, 0, 0)], NOW) is None


def progress(run: Run) -> Progress:
    return next(p for p in runs.unfinished() if p.run.pk == run.pk)


@pytest.mark.django_db(transaction=True)
def test_speed_comes_from_finished_shards_and_from_claims() -> None:
    run = run_rows.computing(begun=100)
    run_rows.shard_done(run, CONTEXTS, 0, begun=100, done=50)  # 32 tokens
    run_rows.shard_held(run, CONTEXTS, 1, begun=50, progress=8)
    found = progress(run)
    assert found.rate == pytest.approx(40 / 100)
    assert found.current is not None and found.current.left == pytest.approx(24 / 0.4)
    assert found.left is None  # nobody knows what the later stages take
    assert found.workers == ["gpu-0"]


@pytest.mark.django_db(transaction=True)
def test_later_stages_are_estimated_by_an_earlier_run_of_similar_width() -> None:
    run_rows.published(token=0.5, latent=0.1, publish=6.0)
    run = run_rows.computing(begun=100)
    assert [stage.left for stage in progress(run).stages] == pytest.approx([None, 64 * 0.5, 30.0, 6.0])
    run_rows.shard_done(run, CONTEXTS, 0, begun=100, done=0)  # slower than that one was
    found = progress(run)
    assert [stage.left for stage in found.stages[1:]] == pytest.approx([32 / 0.32, 30.0, 6.0])
    assert found.left == pytest.approx(100 + 36)


@pytest.mark.django_db(transaction=True)
def test_several_workers_share_what_is_to_come_but_one_publishes() -> None:
    run_rows.published(latent=0.1, publish=6.0)
    run = run_rows.computing()
    for index, worker in enumerate(("gpu-0", "gpu-1")):
        run_rows.shard_held(run, CONTEXTS, index, begun=10, progress=0, worker=worker)
    assert [stage.left for stage in progress(run).stages[2:]] == pytest.approx([15.0, 6.0])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("width", "known"), [(150, True), (600, True), (140, False), (700, False)])
def test_only_a_run_of_half_to_twice_the_width_is_similar(width: int, known: bool) -> None:
    run_rows.published(d_sae=width)
    run = run_rows.computing()
    assert (progress(run).stages[2].left is not None) is known


@pytest.mark.django_db(transaction=True)
def test_a_run_of_another_language_model_tells_nothing() -> None:
    other = sae_rows.language_model("pythia")
    run_rows.published(lm=other)
    theirs = run_rows.computing(sae_rows.new_sae("theirs", slug="theirs", lm=other))
    assert progress(run_rows.computing()).stages[2].left is None
    assert progress(theirs).stages[2].left is not None


@pytest.mark.django_db(transaction=True)
def test_the_nearest_width_is_taken_and_of_those_the_newest() -> None:
    run_rows.published("wide", latent=9.0, d_sae=500)
    run_rows.published("older", latent=0.2)
    run_rows.published("newer", latent=0.3)
    assert progress(run_rows.computing()).stages[2].left == pytest.approx(90.0)


@pytest.mark.django_db(transaction=True)
def test_the_stage_of_latents_has_a_speed_of_its_own() -> None:
    run = run_rows.computing(begun=500)
    run_rows.shard_done(run, CONTEXTS, 0, begun=500, done=400)
    run_rows.shard_done(run, CONTEXTS, 1, begun=400, done=300)
    fields = {"state": Run.State.LOADING, "computed_at": run_rows.ago(300)}
    Run.objects.filter(pk=run.pk).update(**fields)
    run_rows.shard_done(run, LATENTS, 0, begun=200, done=100)  # 128 of 300 latents
    run_rows.shard_held(run, LATENTS, 1, begun=100, progress=0)
    found = progress(run)
    assert found.current is found.stages[2] and found.rate == pytest.approx(1.28)
    assert found.stages[2].left == pytest.approx(172 / 1.28)
    assert found.stages[1].rate == pytest.approx(64 / 200)  # its mean


@pytest.mark.django_db(transaction=True)
def test_a_run_in_the_queue_knows_its_place_and_about_when_it_begins() -> None:
    run_rows.published(token=0.5, latent=0.1, publish=6.0)
    first, second, third = run_rows.computing(), *(sae_rows.new_run(sae_rows.new_sae(n, slug=n)) for n in ("b", "c"))
    whole = 32 + 30 + 6
    assert progress(first).left == pytest.approx(whole)
    waits = [progress(run) for run in (second, third)]
    assert [p.queue.place for p in waits] == [1, 2]
    assert [p.queue.seconds for p in waits] == pytest.approx([whole, 2 * whole])
    assert [p.left for p in waits] == pytest.approx([2 * whole, 3 * whole])


@pytest.mark.django_db(transaction=True)
def test_nothing_is_said_of_the_time_left_while_nobody_works() -> None:
    run_rows.published()
    stalled = progress(run_rows.computing(sign=3600))
    assert stalled.stalled and stalled.left is None and all(stage.left is None for stage in stalled.stages)
