"""Comparisons of two SAEs, from the wish to what is kept of them, and how they are refused, stopped and taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.contrib.auth.models import User
from django.db import connection

from sae_backend import comparisons, kept, managing, queue, store
from sae_backend.comparisons import ComparisonError
from sae_backend.comparisons import worker as at_work
from sae_backend.core.matching import MATCHED, NOVEL, SPLIT, classify
from sae_backend.models import Comparison, Dataset, LanguageModel, Run, Sae
from tests.backend import messages, planted, synthetic

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
State = Comparison.State


@pytest.fixture
def pair(lm: LanguageModel, dataset: Dataset, tmp_path: Path) -> tuple[Sae, Sae]:
    return planted.saes(lm, dataset, tmp_path)


@pytest.fixture
def rows() -> tuple[Sae, Sae]:
    """Two SAEs whose runs are published without any computation."""
    dataset = synthetic.a_dataset()
    made = [synthetic.a_sae(dataset, d_sae) for d_sae in (64, 96)]
    for sae in made:
        synthetic.published(sae, dataset)
        sae.refresh_from_db()
    return made[0], made[1]


def test_what_was_planted_is_found_once_for_both_orders(pair: tuple[Sae, Sae], dataset: Dataset) -> None:
    small, large = pair
    row = comparisons.ask(large, small)
    assert (row.a, row.b, row.state) == (small, large, State.QUEUED)
    assert comparisons.ask(small, large).pk == row.pk and messages.carry_out() == ["compare_saes"]
    row = comparisons.ask(small, large)
    assert row.state == State.DONE, row.error
    assert messages.take() is None and row.attempts == 1
    found = comparisons.sides(row.pk)
    assert found is not None
    a, b = found
    codes = classify(a, b)
    shared = planted.SHARED
    live = a.live[:shared] & b.live[:shared][::-1]
    assert live.sum() > 20 and (codes[0][:shared][live] == MATCHED).all()
    assert (a.counterpart[:shared][live] == shared - 1 - np.flatnonzero(live)).all()
    if a.live[shared] and b.live[shared : shared + 2].all():
        assert codes[0][shared] == SPLIT and (codes[1][shared : shared + 2] == SPLIT).all()
    assert (codes[1][shared + 2 :][b.live[shared + 2 :]] == NOVEL).all()
    _same_tokens(row, a, b, dataset)


def _same_tokens(row: Comparison, a: Any, b: Any, dataset: Dataset) -> None:
    """The sample is the whole text here, so that firings are those of the runs."""
    summary = row.summary
    assert (summary["dataset"], summary["contexts"]) == (dataset.name, dataset.n_contexts)
    for side, sae in ((a, row.a), (b, row.b)):
        run = Run.objects.get(pk=sae.current_run_id)
        fired = [n for (n,) in synthetic.query("select firings from latent where run_id = %s order by index", run.pk)]
        np.testing.assert_array_equal(side.fires, fired)
        assert summary["tokens"] == run.summary["tokens"] and (side.both <= side.fires).all()
    assert summary["a"]["l0"] == pytest.approx(row.a.current_run.summary["l0"])
    stitched = {point["near"]: point for point in summary["a"]["stitched"]}
    assert stitched[None]["l0"] == pytest.approx(summary["b"]["l0"])
    assert stitched[0.5]["l0"] <= stitched[0.7]["l0"] <= stitched[None]["l0"]


def test_a_latents_counterparts_are_read_without_the_rest(pair: tuple[Sae, Sae]) -> None:
    small, large = pair
    assert comparisons.single(small.pk, 3) == [] and small.compared == 0
    row = comparisons.ask(small, large)
    messages.carry_out()
    a, b = comparisons.sides(row.pk) or (None, None)
    assert a is not None and b is not None
    for sae, other, side, index in ((small, large, a, 3), (large, small, b, 61)):
        [found] = comparisons.single(sae.pk, index)
        assert (found.public_id, found.name, found.d_sae) == (other.public_id, other.name, other.d_sae)
        assert (found.index, found.fires, found.both) == (side.best[index, 0], side.fires[index], side.both[index])
        assert found.cos == pytest.approx(float(side.cos[index, 0]))
        sae.refresh_from_db()
        assert sae.compared == 1
    managing.delete(large)
    small.refresh_from_db()
    assert small.compared == 2 and comparisons.single(small.pk, 3) == [] and not Comparison.objects.exists()


def test_a_newer_run_makes_it_outdated_and_it_is_asked_for_again(rows: tuple[Sae, Sae]) -> None:
    one, other = rows
    row = comparisons.ask(one, other)
    runs = {side: {"run_id": sae.current_run_id} for side, sae in zip("ab", rows, strict=True)}
    Comparison.objects.update(state=State.DONE, summary=runs)
    assert comparisons.ask(one, other).state == State.DONE
    synthetic.published(other, Dataset.objects.get())
    other.refresh_from_db()
    again = comparisons.ask(one, other)
    assert (again.pk, again.state, again.attempts) == (row.pk, State.QUEUED, 1)
    other.refresh_from_db()
    assert other.compared == 1  # its latents' pages do not show the old one any more


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hook_name": "blocks.1.hook_resid_post"}, "only SAEs at the same hook point"),
        ({"hook_name_out": "blocks.0.hook_mlp_out"}, "only SAEs at the same hook point"),
        ({"d_out": 8}, "vectors of 16 numbers"),
        ({"current_run_id": None}, "has no pages yet"),
    ],
)
def test_pairs_that_have_nothing_to_compare_are_refused(
    rows: tuple[Sae, Sae], changes: dict[str, Any], words: str
) -> None:
    one, other = rows
    Sae.objects.filter(pk=other.pk).update(**changes)
    other.refresh_from_db()
    with pytest.raises(ComparisonError, match=words):
        comparisons.ask(one, other)
    with pytest.raises(ComparisonError, match="not with itself"):
        comparisons.ask(one, one)
    assert not Comparison.objects.exists()


def test_an_account_has_so_many_under_way_and_no_more(rows: tuple[Sae, Sae], settings: Any) -> None:
    settings.MAX_OPEN_COMPARISONS = 1
    ada, eve = (User.objects.create_user(name) for name in ("ada", "eve"))
    third = synthetic.a_sae(Dataset.objects.get())
    synthetic.published(third, Dataset.objects.get())
    third.refresh_from_db()
    row = comparisons.ask(*rows, owner=ada)
    with pytest.raises(ComparisonError, match="the most there may be at once"):
        comparisons.ask(rows[0], third, owner=ada)
    assert comparisons.ask(rows[0], third, owner=eve).state == State.QUEUED
    assert comparisons.cancel(row) and not comparisons.cancel(row)
    assert comparisons.ask(rows[1], third, owner=ada).state == State.QUEUED


def test_what_does_not_fit_into_memory_is_refused_with_a_sentence(
    rows: tuple[Sae, Sae], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_work, "ROOM", 1 << 50)
    row = comparisons.ask(*rows)
    messages.carry_out()
    row.refresh_from_db()
    assert row.state == State.FAILED and "GB of memory" in row.error
    monkeypatch.undo()
    left = iter((0, 1 << 50))  # before and after what was kept has given way
    monkeypatch.setattr(kept, "free", lambda: next(left))
    at_work._refuse_too_large(*rows)
    monkeypatch.undo()
    assert comparisons.again(row) and not comparisons.again(row)
    row.refresh_from_db()
    assert (row.state, row.error) == (State.QUEUED, "")


def test_one_that_is_cancelled_or_deleted_meanwhile_leaves_nothing(
    pair: tuple[Sae, Sae], monkeypatch: pytest.MonkeyPatch
) -> None:
    row, read = comparisons.ask(*pair), store.read_contexts

    def stopped(*given: Any) -> Any:
        comparisons.cancel(row)
        return read(*given)

    monkeypatch.setattr(store, "read_contexts", stopped)
    messages.carry_out()
    row.refresh_from_db()
    assert row.state == State.CANCELLED and comparisons.sides(row.pk) is None

    def deleted(*given: Any) -> Any:
        if Sae.objects.filter(pk=pair[1].pk).exists():
            managing.delete(pair[1])
        return read(*given)

    monkeypatch.setattr(store, "read_contexts", deleted)
    assert comparisons.again(row)
    at_work.compare(row.pk)
    assert not Comparison.objects.exists() and not Sae.objects.filter(pk=pair[1].pk).exists()
    messages.forget()


def test_a_run_that_is_taken_away_meanwhile_is_said_in_a_sentence(
    rows: tuple[Sae, Sae], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = comparisons.ask(*rows)
    gone = rows[1].current_run

    def deleted(*given: Any) -> None:
        Sae.objects.filter(pk=rows[1].pk).update(current_run=None)
        assert gone is not None
        gone.delete()

    monkeypatch.setattr(at_work, "_refuse_too_large", deleted)
    messages.carry_out()
    row.refresh_from_db()
    assert row.state == State.FAILED and f"the run that {rows[1].name} showed was taken away" in row.error


def test_a_message_that_was_lost_or_came_twice_does_no_harm(rows: tuple[Sae, Sae]) -> None:
    row = comparisons.ask(*rows)
    messages.forget()
    assert queue.sweep(0.0) == 1 and messages.take() == ("compare_saes", [row.pk])
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(hashtext('comparison'), %s::int)", [row.pk])
        at_work.compare(row.pk)
        row.refresh_from_db()
        assert (row.state, row.attempts) == (State.QUEUED, 0)
        cursor.execute("select pg_advisory_unlock_all()")  # its connection goes back to the pool as it is
    other.close()
