"""From files that have arrived to a report, and from a report to an SAE with a run."""

from __future__ import annotations

import io
import os
import re
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from django.contrib.auth.models import User
from safetensors.torch import load_file, save_file

from sae_backend import cleaning, intake, jobs, locks, queue, storage
from sae_backend.intake import checking, errors
from sae_backend.intake.receiving import folder, incoming
from sae_backend.intake.sources import unpacked
from sae_backend.models import Dataset, LanguageModel, Run, Sae, SaeImport
from tests.backend import demo, messages
from tests.backend.imports import HOOK, SAE, STEP, checked, elsewhere, fresh, opened, until

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
State = SaeImport.State


def states(row: SaeImport) -> dict[str, str]:
    return {each["name"]: each["state"] for each in row.report["checks"]}


def test_a_checkpoint_is_described_fitted_tried_and_then_imported_by_one_word(dataset: Dataset) -> None:
    row = checked(opened(SAE))
    assert (row.state, row.error) == (State.WAITING, "")
    report = row.report
    assert report["detected"]["d_sae"] == 1024 and report["detected"]["hook_name"] == HOOK
    assert (row.lm, row.dataset) == (dataset.lm, dataset) and report["ready"] and report["here"] is None
    assert re.fullmatch("[0-9a-f]{12}", report["identity"])
    assert [each["name"] for each in report["fits"]] == ["demo"] and set(states(row).values()) <= {"ok"}
    assert report["trial"]["state"] == "ok" and report["trial"]["l0"] == 16 and 0 < report["trial"]["fvu"] < 0.5
    assert report["trial"]["tokens"] <= checking.TRIAL_TOKENS and 0 <= report["trial"]["silent"] < 1
    assert all(len(file.sha256) == 64 for file in row.files.all())
    intake.start(row)
    messages.carry_out()
    row = fresh(row)
    assert row.state == State.DONE and row.run is not None and row.run.state == Run.State.LIVE
    assert row.sae is not None and row.sae.name.endswith(f"{HOOK} 1024")
    cleaning.clean()
    assert storage.current().names(folder(row)) == set() and not unpacked(row.pk).exists()


def test_a_wide_sae_is_tried_on_fewer_tokens(dataset: Dataset) -> None:
    usual = checking._sample(dataset, 1024)
    assert len(usual) == min(dataset.n_contexts, checking.TRIAL_TOKENS // dataset.ctx_len)
    assert len(checking._sample(dataset, checking.TRIAL_WORK // (3 * dataset.ctx_len))) == 3 < len(usual)
    assert len(checking._sample(dataset, 1 << 40)) == 1


def test_weights_that_are_here_already_are_found_before_anything_is_computed(lm: LanguageModel) -> None:
    sae = demo.a_sae(lm)
    row = checked(opened(SAE))
    assert row.report["here"] == {"public_id": sae.public_id, "name": sae.name, "lm": "demo", "aside": True}
    intake.start(row)
    messages.carry_out()
    assert fresh(row).sae == sae and Sae.objects.count() == 1
    assert not row.files.filter(kept=True).exists()  # they count for nobody


def test_a_run_of_weights_that_another_brought_in_stands_beside_their_pages(dataset: Dataset) -> None:
    ada, eve = (User.objects.create_user(name) for name in ("ada", "eve"))

    def computed(owner: User) -> SaeImport:
        row = checked(opened(SAE, owner=owner), max_tokens=100)
        intake.start(row)
        messages.carry_out()
        return fresh(row)

    first = computed(ada)
    theirs = computed(eve)
    assert theirs.report["here"]["aside"] and theirs.run is not None and theirs.sae is not None
    assert theirs.sae.current_run == first.run and theirs.run.address == f"{theirs.sae.public_id}@r2"
    assert (theirs.run.state, theirs.run.pinned, theirs.run.error) == (Run.State.RETIRED, True, "")
    again = computed(ada)
    assert not again.report["here"]["aside"] and again.sae is not None and again.sae.current_run == again.run


def test_the_same_weights_of_another_language_model_lead_to_the_sae_that_is_here(lm: LanguageModel) -> None:
    sae = demo.a_sae(lm)
    other = LanguageModel.objects.get(pk=lm.pk)
    other.pk, other.name, other.sha256 = None, "other", "0" * 64
    other.save()
    Sae.objects.filter(pk=sae.pk).update(lm=other)
    row = checked(opened(SAE), lm=lm)
    assert row.report["here"]["lm"] == "other"
    intake.start(row)
    messages.carry_out()
    assert fresh(row).state == State.FAILED
    assert fresh(row).error.startswith(f"these weights are here already, as {sae.name} of other, at /s/{sae.public_id}")


def test_a_wrong_hook_point_is_seen_by_the_trial_and_corrected(dataset: Dataset) -> None:
    row = checked(opened(SAE), options={"hook_name": "blocks.0.hook_resid_pre"})
    assert row.report["trial"]["state"] in ("warn", "fail") and row.report["trial"]["fvu"] > 0.5
    assert "Check the language model, the hook point" in row.report["trial"]["text"]
    row = checked(row, options={})
    assert row.report["trial"]["state"] == "ok"


def test_what_the_files_leave_open_is_asked_and_the_answer_taken(dataset: Dataset) -> None:
    row = checked(opened(STEP))
    assert row.state == State.WAITING and "hook point" in row.error and not row.report.get("ready")
    assert [each["field"] for each in row.report["questions"] if each["required"]] == ["hook_name"]
    with pytest.raises(errors.IntakeError, match="check it first"):
        intake.start(row, lm=dataset.lm)
    row = checked(fresh(row), options={"hook_name": HOOK})
    assert row.error == "" and row.report["trial"]["state"] == "ok"
    with pytest.raises(errors.IntakeError, match="check it again"):
        intake.start(row, options={"hook_name": "blocks.1.hook_resid_post"})


def test_a_hook_point_that_is_not_there_or_is_of_another_width_is_a_sentence(dataset: Dataset) -> None:
    row = opened(SAE)
    row = checked(row, lm=dataset.lm, options={"hook_name": "blocks.99.hook_resid_post"})
    assert "is not one of this language model" in row.error
    row = checked(row, options={"hook_name": "blocks.2.mlp.hook_post"})
    assert "wide, but the SAE has" in row.error and states(row)["hook point"] == "fail"
    assert row.state == State.WAITING and row.files.filter(kept=True).count() == 2


def test_where_no_language_model_fits_what_is_missing_is_said(dataset: Dataset) -> None:
    row = checked(opened(SAE), options={"hook_name": "blocks.99.hook_resid_post"})
    assert row.lm is None and "no language model here has blocks.99.hook_resid_post with a width of 256" in row.error
    assert row.report["detected"]["lm_name"] in row.error


def test_files_that_are_no_sae_leave_a_sentence_and_can_be_replaced(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    row = checked(opened(tmp_path))
    assert row.state == State.WAITING and "There are no weights" in row.error
    intake.remove_file(row.files.get())
    for path in SAE.iterdir():
        intake.receive(row, path.name, path)
    assert checked(fresh(row)).error == ""


def test_a_folder_nested_in_an_archive_is_found(dataset: Dataset, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "saes.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in SAE.iterdir():
            archive.write(path, f"download/deeper/{SAE.name}/{path.name}")
    row = checked(opened(tmp_path / "saes.zip"))
    assert row.error == "" and row.report["trial"]["state"] == "ok"
    assert not unpacked(row.pk).exists()


def test_of_several_checkpoints_one_is_chosen(dataset: Dataset, tmp_path: Path) -> None:
    shutil.copytree(STEP.parent, tmp_path / "ckpts")
    shutil.make_archive(str(tmp_path / "ckpts"), "gztar", tmp_path, "ckpts")
    row = checked(opened(tmp_path / "ckpts.tar.gz"), options={"hook_name": HOOK})
    [question] = row.report["questions"]
    assert question["field"] == "file" and len(question["choices"]) == 2
    row = checked(row, options={"hook_name": HOOK, "file": question["choices"][0][0]})
    assert row.error == "" and row.report["trial"]["state"] == "ok"


def test_a_hostile_archive_and_a_pickle_are_refused_in_the_report(dataset: Dataset, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../escaped.pt", b"x")
    row = checked(opened(tmp_path / "a.zip"))
    assert row.state == State.WAITING and "no plain relative path" in row.error
    torch.save({"W": Path("/")}, tmp_path / "b.pt")
    assert "never loaded" in checked(opened(tmp_path / "b.pt")).error


def test_a_file_that_is_not_what_was_announced_is_refused(dataset: Dataset) -> None:
    row = intake.open_import(None)
    for path in SAE.iterdir():
        intake.receive(row, path.name, path, "0" * 64)
    assert "was announced: delete it here and send it again" in checked(row).error


def test_weights_with_nan_are_refused_and_a_scaled_decoder_is_tried(dataset: Dataset, tmp_path: Path) -> None:
    for value, name in ((float("nan"), "nan"), (30.0, "scaled")):
        shutil.copytree(SAE, tmp_path / name)
        weights = load_file(SAE / "sae_weights.safetensors")
        weights["W_dec"] = weights["W_dec"] * value
        save_file(weights, tmp_path / name / "sae_weights.safetensors")
    assert "NaN or infinite" in checked(opened(tmp_path / "nan")).error
    row = checked(opened(tmp_path / "scaled"))
    assert row.report["trial"]["state"] == "fail" and "probably read wrongly" in row.report["trial"]["text"]
    assert row.error == ""  # it may be started all the same


def test_one_that_goes_on_by_itself_stops_where_something_is_wrong(dataset: Dataset, tmp_path: Path) -> None:
    good = opened(SAE)
    good = checked(good, go_on=True)
    assert good.state == State.DONE and good.run is not None and good.run.state == Run.State.LIVE
    bad = checked(opened(SAE), go_on=True, options={"hook_name": "blocks.0.hook_resid_pre"})
    assert bad.state == State.WAITING and "FVU" in bad.error and bad.sae is None


def test_a_run_reads_no_more_tokens_than_asked_for(dataset: Dataset) -> None:
    row = checked(opened(SAE), max_tokens=100)
    intake.start(row)
    messages.carry_out()
    run = fresh(row).run
    assert run is not None and run.state == Run.State.LIVE, run and run.error
    assert run.tokens_total == 128 == run.tokens_done and run.n_contexts == 4  # whole contexts
    assert run.summary["tokens"] <= 128


def test_a_check_that_is_killed_is_done_again_and_not_for_ever(dataset: Dataset) -> None:
    row = opened(SAE)
    intake.check(row)
    messages.forget()  # its message is lost
    SaeImport.objects.update(tries=4, heartbeat_at=None, created_at="2020-01-01T00:00Z")
    assert queue.sweep(600) == 1
    messages.carry_out()
    assert fresh(row).error == "" and fresh(row).report["ready"]
    intake.check(fresh(row))
    messages.forget()
    SaeImport.objects.update(tries=5)
    checking.check_import(row.pk)
    assert fresh(row).state == State.WAITING and "5 workers ended over this" in fresh(row).error


def test_a_check_that_another_worker_has_or_that_was_cancelled_is_left_alone(dataset: Dataset) -> None:
    row = opened(SAE)
    intake.check(row)
    messages.forget()
    attempts = fresh(row).attempts
    with locks.alone("import", row.pk), ThreadPoolExecutor(1) as other:
        other.submit(elsewhere, row.pk).result()
    assert (fresh(row).state, fresh(row).attempts) == (State.CHECKING, attempts)
    assert intake.cancel(fresh(row)) and not intake.cancel(fresh(row))
    checking.check_import(row.pk)
    assert fresh(row).state == State.CANCELLED and fresh(row).report == {}
    cleaning.clean()
    assert storage.current().names(folder(row)) == set()


def test_an_import_that_is_cancelled_while_a_worker_reads_it_leaves_no_sae(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = checked(opened(SAE))
    intake.start(row)
    fitting = jobs._fitting_hook

    def cancelled_meanwhile(*args: Any) -> str:
        intake.cancel(fresh(row))
        return fitting(*args)

    monkeypatch.setattr(jobs, "_fitting_hook", cancelled_meanwhile)
    messages.carry_out()
    assert fresh(row).state == State.CANCELLED and Sae.objects.count() == 0 and Run.objects.count() == 0


def test_what_a_check_brings_after_it_was_given_up_and_asked_for_again_is_not_taken(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = opened(SAE)
    slow = checking._fit_and_try

    def asked_again(held: Any, *rest: Any) -> None:
        monkeypatch.undo()
        held.fail("given up")
        assert fresh(row).error == "given up"
        intake.check(fresh(row), options={"hook_name": "blocks.1.hook_resid_post"})
        messages.forget()
        with ThreadPoolExecutor(1) as other:  # finds this worker at it
            other.submit(elsewhere, row.pk).result()
        slow(held, *rest)

    monkeypatch.setattr(checking, "_fit_and_try", asked_again)
    intake.check(row)
    messages.forget()
    checking.check_import(row.pk)
    assert (fresh(row).state, fresh(row).report) == (State.CHECKING, {})
    messages.carry_out()
    assert fresh(row).report["options"] == {"hook_name": "blocks.1.hook_resid_post"}


def test_a_check_that_takes_too_long_is_given_up_with_a_sentence(
    dataset: Dataset, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.CHECK_SECONDS, settings.WORKER_HEARTBEAT_SECONDS = 0.0, 0.05
    row = opened(SAE)
    slow = checking._fit_and_try
    monkeypatch.setattr(checking, "_fit_and_try", lambda *args: (until(lambda: fresh(row).error), slow(*args)))
    intake.check(row)
    messages.carry_out()
    assert fresh(row).state == State.WAITING and "took longer than 0 s (CHECK_SECONDS)" in fresh(row).error


def test_files_that_nobody_comes_back_for_are_deleted(settings: Any) -> None:
    row, young = opened(SAE), opened(SAE)
    SaeImport.objects.filter(pk=row.pk).update(touched_at="2020-01-01T00:00Z")
    staged = intake.add_file(fresh(young), "more.pt", 10)
    assert intake.append(staged, 0, 5, io.BytesIO(b"12345")) == 5
    for name, age in (("form-old", 1e6), ("form-new", 0.0)):
        (incoming() / name).touch()
        os.utime(incoming() / name, (time.time() - age,) * 2)
    cleaning.clean()
    assert [path.name for path in incoming().glob("form-*")] == ["form-new"]
    (incoming() / "form-new").unlink()
    assert fresh(row).state == State.CANCELLED and "nobody came back" in fresh(row).error
    assert storage.current().names(folder(row)) == set() and len(storage.current().names(folder(young))) == 2
    assert (incoming() / str(young.pk)).exists() and not row.files.filter(kept=True).exists()
