"""Claims, loading, sealing and the figures of a run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from sae_backend import claims, runs, store, summary
from sae_backend.models import Run, RunShard
from tests.backend import synthetic
from tests.backend.synthetic import CONTEXTS, D_SAE, LATENTS, SIZE, a_dataset, a_run, a_sae

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run() -> Run:
    dataset = a_dataset()
    return a_run(a_sae(dataset), dataset)


def in_threads(n: int, work: Callable[[int], Any]) -> list[Any]:
    def closing(i: int) -> Any:
        try:
            return work(i)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(closing, range(n)))


def stall(shard: RunShard | None, seconds: float | None = None) -> None:
    assert shard is not None
    silence = timedelta(seconds=settings.STALLED_SECONDS + 1 if seconds is None else seconds)
    RunShard.objects.filter(pk=shard.pk).update(heartbeat_at=timezone.now() - silence)


def test_a_run_covers_every_context_and_every_latent_once(run: Run) -> None:
    for kind, n in ((CONTEXTS, 24), (LATENTS, D_SAE)):
        places = [i for s in run.shards.filter(kind=kind).order_by("index") for i in range(s.lo, s.hi)]
        assert places == list(range(n))


def test_a_dataset_of_another_language_model_is_refused_by_name(run: Run) -> None:
    other = a_dataset()
    with pytest.raises(store.StoreError, match=f"words is tokenized for {other.lm.name}; sae 0 belongs to lm 0"):
        runs.create(run.sae, other, {})


def test_of_many_that_claim_a_shard_at_once_one_gets_it(run: Run) -> None:
    for index in range(4):
        got = in_threads(8, lambda i, index=index: claims.claim(run.pk, LATENTS, index, f"worker {i}"))
        assert [shard.worker for shard in got if shard] == [
            RunShard.objects.get(run=run, kind=LATENTS, index=index).worker
        ]


def test_a_silent_claim_can_be_taken_and_a_fresh_one_not(run: Run) -> None:
    first = claims.claim(run.pk, LATENTS, 0, "first")
    assert claims.claim(run.pk, LATENTS, 0, "second") is None
    stall(first, settings.STALLED_SECONDS - 5)
    assert claims.claim(run.pk, LATENTS, 0, "second") is None
    stall(first)
    second = claims.claim(run.pk, LATENTS, 0, "second")
    assert second is not None and (second.worker, second.attempts) == ("second", 2)


def test_a_heartbeat_keeps_a_claim_and_tells_a_worker_that_lost_it(run: Run) -> None:
    shard = claims.claim(run.pk, LATENTS, 0, "first")
    stall(shard)
    assert shard is not None and claims.heartbeat(shard, 5)
    assert claims.claim(run.pk, LATENTS, 0, "second") is None
    stall(shard)
    assert claims.claim(run.pk, LATENTS, 0, "second") is not None
    assert not claims.heartbeat(shard, 6)


def test_no_shard_can_be_claimed_before_its_stage_or_after_it(run: Run) -> None:
    assert claims.claim(run.pk, CONTEXTS, 0, "late") is None
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING)
    assert claims.claim(run.pk, LATENTS, 0, "early") is None


def test_claims_of_a_worker_that_ended_are_given_back(run: Run) -> None:
    for index, worker in enumerate(("gone", "gone", "alive")):
        claims.claim(run.pk, LATENTS, index, worker)
    synthetic.load_shard(run.pk, 3, "gone")
    assert [shard.index for shard in claims.release("gone")] == [0, 1]
    assert [claims.claim(run.pk, LATENTS, i, "next") is not None for i in range(4)] == [True, True, False, False]


def test_tokens_done_follow_the_shards(run: Run) -> None:
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING)
    run.shards.filter(kind=CONTEXTS).update(state=RunShard.State.TODO)
    first = claims.claim(run.pk, CONTEXTS, 0, "worker")
    assert first is not None and claims.finish_contexts(first, checksum=0)
    second = claims.claim(run.pk, CONTEXTS, 1, "worker")
    assert second is not None and claims.heartbeat(second, 40)
    run.refresh_from_db()
    assert (run.tokens_done, run.tokens_total) == (8 * 8 + 40, 24 * 8)


def test_loading_a_shard_twice_doubles_nothing(run: Run) -> None:
    shard = claims.claim(run.pk, LATENTS, 0, "loader")
    assert shard is not None
    result = synthetic.shard(shard.lo, shard.hi)
    assert [store.load_latents(shard, [result]) for _ in range(3)] == [True, False, False]
    assert synthetic.count(f"latent_r{run.pk}") == synthetic.count(f"latent_page_r{run.pk}") == SIZE


def test_a_shard_pushed_by_four_connections_at_once_is_loaded_once(run: Run) -> None:
    shard = claims.claim(run.pk, LATENTS, 0, "loader")
    assert shard is not None
    result = synthetic.shard(shard.lo, shard.hi)
    assert sorted(in_threads(4, lambda _: store.load_latents(shard, [result]))) == [False, False, False, True]
    assert synthetic.count(f"latent_r{run.pk}") == SIZE


def test_what_a_worker_brings_after_it_lost_its_claim_is_refused(run: Run) -> None:
    late = claims.claim(run.pk, LATENTS, 0, "late")
    stall(late)
    assert claims.claim(run.pk, LATENTS, 0, "second") is not None
    assert late is not None and not store.load_latents(late, [synthetic.shard(late.lo, late.hi)])
    assert synthetic.count(f"latent_r{run.pk}") == 0


@pytest.mark.parametrize("stop", [lambda pk: runs.fail(pk, "no"), runs.cancel], ids=["failed", "cancelled"])
def test_a_stopped_run_keeps_its_rows_and_a_worker_that_finishes_adds_none(
    run: Run, stop: Callable[[int], None]
) -> None:
    synthetic.load_shard(run.pk, 0, "loader")
    late = claims.claim(run.pk, LATENTS, 1, "late")
    stop(run.pk)
    assert late is not None and not store.load_latents(late, [synthetic.shard(late.lo, late.hi)])
    assert claims.claim(run.pk, LATENTS, 2, "late") is None
    assert not runs.advance(run.pk, LATENTS, Run.State.SEALED)
    assert [synthetic.count(table) for table in synthetic.tables(run)] == [SIZE, SIZE]


def test_a_run_fails_once_and_a_live_one_not_at_all(run: Run) -> None:
    runs.fail(run.pk, "the first sentence")
    runs.fail(run.pk, "the second")
    run.refresh_from_db()
    assert (run.error, run.log.count()) == ("the first sentence", 1)
    live = synthetic.published(run.sae, run.dataset)
    runs.fail(live.pk, "too late")
    live.refresh_from_db()
    assert (live.state, live.error, len(synthetic.tables(live))) == (Run.State.LIVE, "", 2)


def test_a_run_moves_on_only_when_every_shard_is_done_and_for_one_caller(run: Run) -> None:
    for index in range(D_SAE // SIZE - 1):
        synthetic.load_shard(run.pk, index, "loader")
    last = claims.claim(run.pk, LATENTS, D_SAE // SIZE - 1, "loader")
    assert last is not None and not runs.advance(run.pk, LATENTS, Run.State.SEALED)
    store.load_latents(last, [synthetic.shard(last.lo, last.hi)])
    moved = in_threads(6, lambda _: runs.advance(run.pk, LATENTS, Run.State.SEALED))
    assert moved.count(True) == 1
    run.refresh_from_db()
    assert run.state == Run.State.SEALED


def test_sealing_can_be_repeated(run: Run) -> None:
    synthetic.load_and_seal(run)
    before = synthetic.digest(run)
    store.seal(run.pk)
    assert synthetic.digest(run) == before
    indexes = synthetic.query("select count(*) from pg_indexes where tablename = %s", f"latent_r{run.pk}")
    assert indexes == [(len(store.SORTABLE) + 2,)]


def test_the_digest_follows_the_rows_and_not_how_they_were_cut(run: Run) -> None:
    synthetic.load(run)
    other = runs.create(run.sae, run.dataset, {"shard_latents": 1000})
    Run.objects.filter(pk=other.pk).update(state=Run.State.LOADING)
    synthetic.load(other)
    assert synthetic.digest(run) == synthetic.digest(other)
    synthetic.query(f"update latent_r{other.pk} set max_act = max_act + 1 where index = 100 returning 1")
    same = [a == b for a, b in zip(synthetic.digest(run), synthetic.digest(other), strict=True)]
    assert same == [False, True]


def test_what_is_undefined_is_null(run: Run) -> None:
    synthetic.load(run)
    stats = synthetic.statistics(np.arange(D_SAE))
    for column in ("max_act", "kurtosis"):
        expected = int(np.isnan(getattr(stats, column)).sum())
        assert expected > 0
        assert synthetic.query(f"select count(*) from latent_r{run.pk} where {column} is null") == [(expected,)]
        assert synthetic.query(f"select count(*) from latent_r{run.pk} where {column} = 'NaN'") == [(0,)]


def test_the_figures_of_a_run_are_numpys(run: Run) -> None:
    synthetic.load(run)
    found = summary.from_tables(f"latent_r{run.pk}", store.SORTABLE)
    index = np.arange(D_SAE)
    stats, facts = synthetic.statistics(index), synthetic.decoder_facts(index)
    live = stats.firings > 0
    assert found["counts"] == dict(
        zip(("dead", "rare", "alive", "dense"), np.bincount(stats.status).tolist(), strict=True)
    )
    steps = np.arange(101) / 100
    for column in store.SORTABLE:
        values = np.asarray(getattr(stats if hasattr(stats, column) else facts, column))[live]
        values = values[~np.isnan(values)]
        expected = np.quantile(values, steps) if len(values) else None
        assert (found["quantiles"][column] is None) == (expected is None)
        if expected is not None:
            np.testing.assert_allclose(found["quantiles"][column], expected, rtol=1e-12)
    bins = np.clip(np.floor((np.log10(stats.density[live]) + 8) / 0.125), 0, 63).astype(int)
    assert found["density_histogram"]["counts"] == np.bincount(bins, minlength=64).tolist()
    opposing = facts.opposing_cos
    assert found["opposing"] == {"-0.7": int((opposing < -0.7).sum()), "-0.9": int((opposing < -0.9).sum())}
    scatter = np.array(found["scatter"]["counts"])
    shown = live & ~np.isnan(stats.kurtosis)
    assert scatter.sum() == shown.sum()
    assert (
        scatter.sum(1).tolist()
        == np.bincount(
            np.clip(np.floor((np.log10(stats.density[shown]) + 8) / 0.125), 0, 63).astype(int), minlength=64
        ).tolist()
    )
