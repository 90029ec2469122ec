"""Real worker processes, started as the launcher starts them: killed, doubled, and without their messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from django.conf import settings

from sae_backend import tasks
from sae_backend.models import Dataset, LanguageModel, Run, Sae, SaeImport
from tests.backend import demo, synthetic
from tests.e2e.crew import Workers, done, held, live, new_run, undisturbed, unread

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_worker_takes_a_checkpoint_to_live_pages(workers: Workers, lm: LanguageModel, dataset: Dataset) -> None:
    row = demo.an_import(lm, dataset)
    tasks.import_sae.delay(row.pk)
    broken = demo.an_import(lm, dataset, source=Path("/nowhere"))
    tasks.import_sae.delay(broken.pk)
    workers.start()
    workers.wait_for(lambda: SaeImport.objects.filter(pk=row.pk, run__state=Run.State.LIVE))
    workers.wait_for(lambda: SaeImport.objects.filter(pk=broken.pk, state=SaeImport.State.FAILED))
    row.refresh_from_db()
    assert row.run is not None and row.run.tokens_done == row.run.tokens_total == dataset.n_tokens
    assert sum(row.run.summary["counts"].values()) == 1024
    assert [line.text for line in row.run.log.order_by("pk")][-1] == "published"


def test_a_killed_worker_is_followed_by_one_of_its_name_that_goes_on_at_once(
    workers: Workers, sae: Sae, dataset: Dataset
) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STALLED_SECONDS"] = "600"  # nobody waits for a claim to run out
    run = new_run(sae, dataset)
    for shards in (2, 16):  # of contexts, of latents
        workers.start()
        workers.wait_for(lambda shards=shards: done(run) >= shards)
        workers.kill("compute")
    workers.start()
    workers.wait_for(lambda: live(run))
    assert synthetic.digest(run) == expected


def test_two_workers_share_a_run_and_give_what_one_gives(workers: Workers, sae: Sae, dataset: Dataset) -> None:
    expected = undisturbed(sae, dataset)
    workers.environment["STALLED_SECONDS"] = "600"  # no claim runs out because a machine is slow
    run = new_run(sae, dataset)
    with unread(dataset):
        for name in ("one", "two"):
            workers.start(name)
        workers.wait_for(lambda: len({shard.worker for shard in held(run)}) == 2)
    workers.wait_for(lambda: live(run))
    took_part = set(run.shards.values_list("worker", flat=True))
    assert {name.partition("@")[0] for name in took_part} == {"one", "two"}
    assert synthetic.digest(run) == expected


def test_a_run_goes_on_when_redis_has_lost_every_message(workers: Workers, sae: Sae, dataset: Dataset) -> None:
    expected = undisturbed(sae, dataset)
    run = new_run(sae, dataset)
    forgetful = redis.Redis.from_url(settings.REDIS_URL)
    forgetful.flushdb()
    workers.start()
    workers.wait_for(lambda: done(run) >= 2)
    forgetful.flushdb()
    workers.wait_for(lambda: live(run))
    assert run.log.filter(text__startswith="nobody was working on this run").exists()
    assert synthetic.digest(run) == expected
