"""Jobs from a checkpoint to pages, their messages carried out one after the other; and how they fail."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.utils import timezone
from safetensors import SafetensorError

from sae_backend import claims, cleaning, faults, jobs, packing, queue, registry, runs, spool, store
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae, SaeImport
from tests.backend import demo, messages, synthetic
from tests.backend.synthetic import CONTEXTS, LATENTS

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
D_SAE = 1024
STORE = django_settings.VAR_DIR / "store"


def fresh(row: Any) -> Any:
    row.refresh_from_db()
    return row


def finished(run: Run) -> Run:
    messages.carry_out()
    assert fresh(run).state == Run.State.LIVE, run.error
    return run


# ---- from a checkpoint to pages ----


def test_a_run_that_has_begun_is_finished_before_the_next_ones_contexts(sae: Sae, dataset: Dataset) -> None:
    quick = {name: value for name, value in demo.QUICK.items() if name != "shard_contexts"}
    first, second = (jobs.new_run(sae, dataset, shard_contexts=24, **quick | {"shard_latents": 512}) for _ in range(2))
    order = messages.carry_out_with_runs()
    end = order.index(("publish_run", first.pk))
    assert {run for _, run in order[:end]} == {first.pk}
    found_done = set(order[order.index(("publish_run", second.pk)) + 1 :])
    assert found_done == {("compute_contexts", second.pk), ("load_latents", second.pk)}


def test_a_checkpoint_becomes_an_sae_with_a_live_run(lm: LanguageModel, dataset: Dataset) -> None:
    row = demo.an_import(lm, dataset)
    jobs.import_sae(row.pk)
    assert messages.carry_out() == ["compute_contexts", "load_latents", "publish_run"]
    fresh(row)
    assert (row.state, row.error, row.run.state) == (SaeImport.State.DONE, "", Run.State.LIVE)
    assert (row.sae.d_in, row.sae.d_sae, row.sae.k, row.sae.format) == (256, D_SAE, 16, "saelens")
    assert row.sae.current_run_id == row.run_id
    summary = row.run.summary
    assert sum(summary["counts"].values()) == D_SAE
    assert row.run.tokens_done == row.run.tokens_total == demo.CONTEXTS * demo.CTX_LEN
    assert row.run_id not in spool.runs()
    [blob] = synthetic.query(f"select examples from latent_page_r{row.run_id} order by length(examples) desc limit 1")
    examples = packing.unpack_examples(blob[0])
    assert examples.context.max() < demo.CONTEXTS and examples.act.min() > 0


def test_the_same_weights_are_found_again(lm: LanguageModel, sae: Sae, tmp_path: Path) -> None:
    elsewhere = shutil.copytree(demo.SAE, tmp_path / "under another name")
    again = demo.an_import(lm, source=elsewhere)
    jobs.import_sae(again.pk)
    assert fresh(again).sae == sae and Sae.objects.count() == 1


def test_an_import_that_is_done_is_not_done_again(lm: LanguageModel, dataset: Dataset) -> None:
    row = demo.an_import(lm, dataset)
    jobs.import_sae(row.pk)
    jobs.import_sae(row.pk)
    assert Run.objects.count() == 1


def test_an_import_under_way_in_another_process_is_left_to_it(lm: LanguageModel, dataset: Dataset) -> None:
    row = demo.an_import(lm, dataset)
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("select pg_advisory_lock(hashtext('import'), %s::int)", [row.pk])
        jobs.import_sae(row.pk)
        assert fresh(row).state == SaeImport.State.QUEUED
        cursor.execute("select pg_advisory_unlock(hashtext('import'), %s::int)", [row.pk])
    other.close()
    jobs.import_sae(row.pk)
    assert fresh(row).state == SaeImport.State.DONE


def test_an_import_that_was_killed_while_it_ran_is_done_when_sent_again(lm: LanguageModel, dataset: Dataset) -> None:
    row = demo.an_import(lm, dataset)
    SaeImport.objects.update(state=SaeImport.State.RUNNING)
    assert queue.take_over("whoever") == 0
    messages.carry_out()
    assert fresh(row).run.state == Run.State.LIVE and Run.objects.count() == 1


def test_another_sae_of_the_same_name_has_an_address_of_its_own(lm: LanguageModel, sae: Sae, tmp_path: Path) -> None:
    other = shutil.copytree(demo.DEMO / "saes" / "resid_post_2_topk32_1024", tmp_path / demo.SAE.name)
    row = demo.an_import(lm, source=other)
    jobs.import_sae(row.pk)
    assert (sae.slug, fresh(row).sae.slug) == ("resid_post_2_topk16_1024", "resid_post_2_topk16_1024-2")
    assert row.sae.name == f"{sae.name} (2)"


def test_a_second_run_has_the_same_rows_however_its_contexts_are_cut_and_the_first_retires(
    sae: Sae, dataset: Dataset
) -> None:
    first = finished(jobs.new_run(sae, dataset, **demo.QUICK))
    second = finished(jobs.new_run(sae, dataset, **{**demo.QUICK, "shard_contexts": 20}))
    assert synthetic.digest(first) == synthetic.digest(second)
    assert (fresh(first).state, fresh(sae).current_run) == (Run.State.RETIRED, second)
    assert (first.number, second.number) == (1, 2)
    enriched = f"select count(*) from latent_page_r{second.pk} where length(enrichment) = %s"
    assert synthetic.query(enriched % (4 + 4 * len(second.summary["token_sets"]["sets"]))) == [(D_SAE,)]


def test_the_layers_of_a_data_set_are_measured_by_its_first_run_alone(
    sae: Sae, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finished(jobs.new_run(sae, dataset, **demo.QUICK))
    layers = first.summary["basis_by_layer"]["layers"]
    assert len(layers) == sae.lm.n_layers + 1
    assert all(1 < of["plain"] < 100 and 2.5 < of["rotated"] < 3.5 for of in layers)
    monkeypatch.setattr("sae_backend.core.layers.basis_by_layer", None)
    second = finished(jobs.new_run(sae, dataset, **demo.QUICK))
    assert second.summary["basis_by_layer"] == first.summary["basis_by_layer"]


# ---- imports that fail ----


def failure(row: SaeImport) -> str:
    jobs.import_sae(row.pk)
    assert fresh(row).state == SaeImport.State.FAILED and row.done_at is not None and row.sae is None
    assert Sae.objects.count() == 0
    return str(row.error)


def test_a_missing_file_is_a_sentence(lm: LanguageModel) -> None:
    assert failure(demo.an_import(lm, source=Path("/nowhere/sae.pt"))) == "There is no file or folder /nowhere/sae.pt."


def test_weights_of_another_width_name_both_widths(lm: LanguageModel) -> None:
    error = failure(demo.an_import(lm, hook_name="blocks.1.mlp.hook_post"))
    assert error.startswith("d_in is 256, but blocks.1.mlp.hook_post of demo is 1024 wide: this SAE belongs to another")


def test_a_hook_point_that_is_not_there_names_one_that_is(lm: LanguageModel) -> None:
    error = failure(demo.an_import(lm, hook_name="blocks.9.hook_resid_post"))
    assert "'blocks.9.hook_resid_post' is not one of this language model" in error
    assert "for example blocks." in error


def test_a_file_without_a_hook_point_asks_for_it(lm: LanguageModel) -> None:
    [source] = (demo.DEMO / "saes" / "resid_post_2_topk32_4096_ckpts").glob("*00087.pt")
    assert "--hook-name blocks." in failure(demo.an_import(lm, source=source))


def test_weights_of_another_language_model_are_not_run_on_this_one(sae: Sae, tmp_path: Path) -> None:
    shutil.copytree(sae.lm.source, tmp_path / "other")
    with (tmp_path / "other" / "config.json").open("a") as file:
        file.write(" ")
    row = demo.an_import(registry.register_lm("other", str(tmp_path / "other")))
    jobs.import_sae(row.pk)
    assert fresh(row).error.startswith(f"these weights are here already, as {sae.name} of demo")


def test_a_store_that_cannot_be_written_is_named(lm: LanguageModel, tmp_path: Path, settings: Any) -> None:
    settings.STORE_URL = str(tmp_path / "file" / "store")
    (tmp_path / "file").touch()
    row = demo.an_import(lm)
    with pytest.raises(OSError):
        jobs.import_sae(row.pk)
    assert fresh(row).error.startswith(f"{settings.STORE_URL} cannot be used: ")
    assert "set STORE_URL to another directory" in row.error


# ---- runs that fail ----


def test_a_shard_that_cannot_be_computed_fails_its_run_and_stops_the_others(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK, max_l0=5)
    errors: list[str] = []
    done = messages.carry_out(errors)
    assert done == ["compute_contexts"] * 6 and len(errors) == 1
    assert fresh(run).state == Run.State.FAILED and run.error == errors[0]
    assert "more than 5 means that the checkpoint is read wrongly" in run.error
    assert sum(run.shards.values_list("attempts", flat=True)) == 1
    assert [(line.level, line.text) for line in run.log.order_by("pk")][-1] == ("error", run.error)
    assert sae.current_run is None


def test_a_spool_that_cannot_be_written_is_a_sentence_that_names_the_directory(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    (STORE / spool.folder(run.pk) / "contexts-000000-1.safetensors").mkdir(parents=True)  # in its file's place
    messages.carry_out([])
    assert fresh(run).state == Run.State.FAILED
    assert run.error.startswith(f"{STORE} cannot be used: ")
    assert "Is a directory" in run.error and "It needs free space" in run.error
    full = jobs.sentence(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert full.startswith(f"{STORE} cannot be used: ")


def test_a_fault_of_ours_is_admitted(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    for file in (STORE / sae.path).glob("cfg.json"):
        whole = file.read_text()
        file.write_text(json.dumps({**json.loads(whole), "d_sae": 512}))
        try:
            messages.carry_out([])
        finally:
            file.write_text(whole)
    assert fresh(run).state == Run.State.FAILED and "512" in run.error


def test_a_shard_that_ends_its_worker_each_time_is_given_up(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    run.shards.filter(kind=CONTEXTS, index=2).update(deaths=jobs.MAX_DEATHS)
    messages.carry_out([])
    assert fresh(run).state == Run.State.FAILED
    assert run.error.startswith("5 workers ended while they computed contexts 16 to 24")


def test_a_run_that_lost_rows_fails_when_it_is_published(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    while (message := messages.take()) != ("publish_run", [run.pk]):
        assert message is not None
        getattr(jobs, message[0])(*message[1])
    synthetic.query(f"delete from latent_r{run.pk} where index = 7 returning 1")
    with pytest.raises(store.StoreError):
        jobs.publish(run.pk)
    assert fresh(run).state == Run.State.FAILED and "lost rows" in run.error
    assert queue.sweep(0) == 0


# ---- the database goes away ----


def test_a_connection_that_is_cut_inside_copy_leaves_the_shard_to_be_done_again(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    for index in range(6):
        jobs.compute_contexts(run.pk, index)
    _cut_copies_into(f"latent_page_r{run.pk}")
    with pytest.raises(faults.DATABASE):
        jobs.load_latents(run.pk, 3)
    assert fresh(run).state == Run.State.LOADING and run.error == ""
    shard = run.shards.get(kind=LATENTS, index=3)
    assert (shard.state, shard.attempts, shard.deaths) == (RunShard.State.TODO, 1, 0)  # its worker lives
    assert synthetic.count(f"latent_r{run.pk}") == 0
    with connection.cursor() as cursor:
        cursor.execute("drop function cut cascade")
    messages.carry_out()
    assert fresh(run).state == Run.State.LIVE


def _cut_copies_into(table: str) -> None:
    """End the connection of whoever inserts, as a restart of the server would."""
    with connection.cursor() as cursor:
        cursor.execute(
            "create function cut() returns trigger language plpgsql as "
            "$$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$"
        )
        cursor.execute(f"create trigger cut before insert on {table} for each row execute function cut()")


# ---- messages that were lost ----


def test_lost_messages_are_sent_again_once_nobody_is_at_work(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    for index in range(3):
        jobs.compute_contexts(run.pk, index)
    messages.forget()
    assert queue.sweep(60) == 0
    Run.objects.filter(pk=run.pk).update(heartbeat_at=timezone.now() - timedelta(seconds=61))
    assert queue.sweep(60) == 1
    assert queue.sweep(60) == 0  # while messages wait
    assert messages.carry_out().count("compute_contexts") == 3
    assert fresh(run).state == Run.State.LIVE


def test_a_run_that_another_worker_is_at_is_not_sent_again(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    messages.forget()
    claims.claim(run.pk, CONTEXTS, 0, "another")
    assert queue.sweep(0) == 0
    run.shards.update(heartbeat_at=timezone.now() - timedelta(hours=1))
    assert queue.sweep(0) == 1


def test_a_run_whose_publisher_was_killed_is_published_by_the_next_sweep(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    while (message := messages.take()) != ("publish_run", [run.pk]):
        assert message is not None
        getattr(jobs, message[0])(*message[1])
    assert fresh(run).state == Run.State.SEALED
    assert queue.sweep(0) == 1
    finished(run)


def test_a_run_killed_before_its_first_message_begins_with_the_next_sweep(sae: Sae, dataset: Dataset) -> None:
    run = runs.create(sae, dataset, demo.QUICK)
    assert queue.sweep(0) == 1
    finished(run)


# ---- what runs leave behind ----


def test_the_spool_keeps_only_runs_that_are_not_finished_or_can_be_resumed(sae: Sae, dataset: Dataset) -> None:
    some = [jobs.new_run(sae, dataset, **demo.QUICK) for _ in range(4)]
    for run in some:
        jobs.compute_contexts(run.pk, 0)
    for run in some[:2]:
        runs.cancel(run.pk)
    Run.objects.filter(pk=some[0].pk).update(stopped_at=timezone.now() - timedelta(days=8))
    Run.objects.filter(pk=some[2].pk).update(state=Run.State.LIVE)  # and killed before its spool went
    cleaning.clean()
    assert [run.pk in spool.runs() for run in some] == [False, True, False, True]


def test_a_worker_goes_on_with_what_nobody_has_and_its_messages_find_it_done(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    taken = claims.claim(run.pk, RunShard.Kind.CONTEXTS, 2, "another")
    assert taken is not None
    jobs.compute_contexts_onward(run.pk, 1)
    shards = run.shards.filter(kind=RunShard.Kind.CONTEXTS).order_by("index")
    assert [s.state == RunShard.State.DONE for s in shards] == [s.index != 2 for s in shards]
    before = {s.index: s.done_at for s in shards}
    jobs.compute_contexts_onward(run.pk, 3)
    assert {s.index: s.done_at for s in shards.all()} == before
    run.refresh_from_db()
    assert run.state == Run.State.COMPUTING
