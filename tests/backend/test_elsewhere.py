"""Jobs of a host that has only the shared files: language models, imports, the spool, and a bucket that is away."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from sae_backend import cleaning, intake, jobs, kept, queue, registry, spool, storage
from sae_backend.core.language_model import LanguageModelError
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae, SaeImport
from tests import buckets
from tests.backend import demo, messages

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[buckets.Service]:
    with buckets.service(tmp_path_factory.mktemp("service")) as service:
        yield service


@pytest.fixture
def wire(service: buckets.Service) -> Iterator[buckets.Wire]:
    service.empty()
    wire = buckets.Wire(service.port)
    yield wire
    wire.close()


@pytest.fixture(autouse=True)
def shared(
    service: buckets.Service, wire: buckets.Wire, settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """This process uses the bucket along the wire, with an empty cache, and nothing that an earlier test loaded."""
    for name, value in service.environment(wire.port).items():
        monkeypatch.setenv(name, value)
    settings.STORE_URL = f"s3://{buckets.BUCKET}/{buckets.PREFIX}"
    settings.COMPUTE_DTYPE, settings.CACHE_DIR, settings.AWS_MAX_ATTEMPTS = "float32", tmp_path / "cache", 2
    messages.forget()
    for cached in (kept.lm, kept.sae):
        cached.cache_clear()
    kept.forget()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where the one who asks has the files."""
    shutil.copytree(demo.DEMO / "model", tmp_path / "home" / "model")
    shutil.copytree(demo.SAE, tmp_path / "home" / "sae")
    return tmp_path / "home"


@pytest.fixture
def lm(home: Path) -> LanguageModel:
    return registry.register_lm("far", str(home / "model"))


@pytest.fixture
def dataset(lm: LanguageModel) -> Dataset:
    return demo.a_dataset(lm)


@pytest.fixture
def sae(lm: LanguageModel, home: Path) -> Sae:
    return imported(intake.ask("sae", home / "sae", lm, None, {})).sae


def imported(row: SaeImport) -> Any:
    messages.carry_out([])
    row.refresh_from_db()
    return row


def fresh(row: Any) -> Any:
    row.refresh_from_db()
    return row


# ---- language models ----


def test_a_language_model_is_loaded_from_its_copy_where_its_folder_is_not(lm: LanguageModel, home: Path) -> None:
    with registry.source_of(lm) as source:
        assert source == str(home / "model")
    shutil.rmtree(home)
    with registry.source_of(lm) as source:
        assert registry.language_model.load(source).bridge.cfg.d_model == lm.d_model


def test_files_of_another_model_in_the_same_place_are_not_used(lm: LanguageModel, home: Path) -> None:
    (home / "model" / "config.json").write_text("{}")
    with registry.source_of(lm) as source:
        assert not source.startswith(str(home))


def test_a_language_model_that_is_nowhere_says_which_command_brings_it(lm: LanguageModel, home: Path) -> None:
    storage.current().remove(f"models/{lm.sha256}")
    shutil.move(home, home.with_name("elsewhere"))
    with pytest.raises(LanguageModelError) as error:
        registry.source_of(lm).__enter__()
    assert f"there is no {home}/model on this worker's host" in str(error.value)
    assert f"run add_model far {home}/model again" in str(error.value)
    call_command("add_model", "far", home.with_name("elsewhere") / "model")
    shutil.rmtree(home.with_name("elsewhere"))
    with registry.source_of(fresh(lm)) as source:
        assert (Path(source) / "tokenizer.json").exists()


def test_a_copy_that_is_not_what_was_added_is_refused(lm: LanguageModel, home: Path) -> None:
    shutil.rmtree(home)
    with storage.current().writing(f"models/{lm.sha256}", "config.json") as path:
        path.write_text("{}")
    with pytest.raises(LanguageModelError, match="^the files of far in .* are not those it was added with"):
        registry.source_of(lm).__enter__()


# ---- imports ----


def test_an_import_has_its_files_where_the_one_who_asked_has_lost_them(lm: LanguageModel, home: Path) -> None:
    row = intake.ask("sae", home / "sae", lm, None, {})
    shutil.rmtree(home / "sae")
    cleaning.clean()  # which leaves what is not imported
    assert imported(row).error == "" and row.sae.d_sae == 1024
    cleaning.clean()
    assert storage.current().folders("imports") == set()
    assert storage.current().names(row.sae.path) == {"cfg.json", "sae_weights.safetensors"}


def test_one_file_of_a_folder_is_imported_with_the_settings_beside_it(
    lm: LanguageModel, dataset: Dataset, home: Path
) -> None:
    row = intake.ask("sae", home / "sae" / "sae_weights.safetensors", lm, dataset, {})
    shutil.rmtree(home / "sae")
    assert imported(row).error == ""
    assert row.sae.path.endswith(f"{row.sae.sha256}/sae_weights.safetensors")
    kept.sae.cache_clear()
    assert kept.sae(row.sae_id).identity() == row.sae.sha256
    assert fresh(row.run).state == Run.State.LIVE


def test_what_is_no_checkpoint_is_refused_before_a_worker_hears_of_it(lm: LanguageModel, home: Path) -> None:
    with pytest.raises(CommandError, match=f"^There is no file or folder {home}/nothing.$"):
        call_command("import_sae", home / "nothing", model="far", no_wait=True)
    assert SaeImport.objects.count() == 0 and messages.take() is None


def test_a_bucket_that_is_away_when_asked_is_a_sentence_and_nothing_is_queued(
    lm: LanguageModel, home: Path, wire: buckets.Wire
) -> None:
    wire.cut()
    with pytest.raises(CommandError, match=f"^http://127.0.0.1:{wire.port} cannot be reached"):
        call_command("import_sae", home / "sae", model="far", no_wait=True)
    assert SaeImport.objects.count() == 0 and messages.take() is None


# ---- runs ----


def test_a_run_whose_bucket_stays_away_says_so_and_is_resumed_with_what_it_had(
    sae: Sae, dataset: Dataset, wire: buckets.Wire
) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    for index in range(4):
        jobs.compute_contexts(run.pk, index)
    wire.cut()
    messages.carry_out([])
    assert fresh(run).state == Run.State.FAILED
    assert run.error.startswith(f"http://127.0.0.1:{wire.port} cannot be reached")
    wire.cut(refusals=0)
    assert queue.resume(run.pk)
    assert messages.carry_out().count("compute_contexts") == 2
    assert fresh(run).state == Run.State.LIVE and run.pk not in spool.runs()


def test_a_part_of_the_spool_that_the_bucket_loses_is_computed_again(sae: Sae, dataset: Dataset) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    for index in range(6):
        jobs.compute_contexts(run.pk, index)
    victim = run.shards.get(kind=RunShard.Kind.CONTEXTS, index=3)
    spool.remove(victim)
    kept.forget()
    messages.carry_out([])
    assert fresh(run).state == Run.State.LIVE and fresh(victim).attempts == 2


def test_a_spool_that_is_evicted_between_shards_of_latents_is_fetched_again(
    sae: Sae, dataset: Dataset, tmp_path: Path
) -> None:
    run = jobs.new_run(sae, dataset, **demo.QUICK)
    for index in range(6):
        jobs.compute_contexts(run.pk, index)
    for index in range(8):
        jobs.load_latents(run.pk, index)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert fresh(run).state == Run.State.SEALED
