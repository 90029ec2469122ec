"""What people change of an SAE: names, what they say of it, runs kept and dropped, and the whole of it deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection

from sae_backend import claims, cleaning, jobs, managing, queue, runs, slugs, spool, storage
from sae_backend.managing import ManagingError
from sae_backend.models import DeletedSae, FormerSlug, Run, RunShard, Sae
from tests.backend import demo, messages
from tests.browser import run_rows, sae_rows
from tests.browser.run_rows import CONTEXTS

pytestmark = pytest.mark.django_db(transaction=True)


def tables() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("select relname from pg_class where starts_with(relname, 'latent_') and relkind in ('r', 'p')")
        return {name for (name,) in cursor.fetchall() if name != "latent_page"}


def state(run: Run) -> str:
    run.refresh_from_db()
    return run.state


def test_a_former_name_is_no_other_saes_and_may_be_taken_back() -> None:
    sae = sae_rows.new_sae("first", slug="first")
    managing.rename(sae, "Second name")
    assert (sae.name, sae.slug) == ("Second name", "second-name")
    assert [f.slug for f in sae.former_slugs.all()] == ["first"]
    assert slugs.free("first", "another") == "first-2"
    managing.rename(sae, "first")
    assert sae.slug == "first" and [f.slug for f in sae.former_slugs.all()] == ["second-name"]


def test_a_name_with_the_same_slug_changes_no_address() -> None:
    sae = sae_rows.new_sae("first", slug="first")
    managing.rename(sae, "First!")
    assert (sae.name, sae.slug) == ("First!", "first") and not FormerSlug.objects.exists()


def test_a_name_that_looks_like_an_identity_gets_an_address_that_does_not() -> None:
    assert slugs.free("deadbeef", "x") == "sae-deadbeef" and slugs.free("beef", "x") == "beef"


def test_what_is_said_of_an_sae_is_replaced_whole_and_nothing_else_is_kept() -> None:
    sae = sae_rows.new_sae()
    managing.describe(sae, {"notes": "seed 1", "licence": "MIT", "path": "/etc"})
    managing.describe(sae, {"notes": "seed 2", "licence": ""})
    sae.refresh_from_db()
    assert sae.about == {"notes": "seed 2"} and sae.path == "nowhere"


def test_another_run_takes_the_dtype_of_the_one_before_and_the_place_of_the_live_one_only_when_done() -> None:
    messages.forget()
    live = sae_rows.publish()
    Run.objects.filter(pk=live.run.pk).update(config={"dtype": "bfloat16"})
    user = User.objects.create_user("ada")
    run = managing.rerun(live.sae, sae_rows.dataset(live.sae.lm), max_tokens=20, owner=user)
    live.sae.refresh_from_db()
    assert (run.number, run.config["dtype"], live.sae.current_run_id) == (2, "bfloat16", live.run.pk)
    assert state(run) == "queued" and run.owner == user and run.tokens_total == 2 * sae_rows.CTX_LEN  # whole contexts
    assert "torch" in run.config["versions"]
    assert messages.take() is not None


def test_only_superseded_and_stopped_runs_that_are_not_kept_are_dropped() -> None:
    old = sae_rows.publish()
    new = sae_rows.publish(old.sae)
    managing.pin(old.run, True)
    for run, words in ((new.run, "what the pages show"), (old.run, "is kept: let it go first")):
        with pytest.raises(ManagingError, match=words):
            managing.drop(run)
    waiting = sae_rows.new_run(old.sae)
    with pytest.raises(ManagingError, match="cancel it first"):
        managing.drop(waiting)
    managing.pin(old.run, False)
    managing.drop(old.run)
    cleaning.clean()
    assert (state(old.run), state(new.run)) == ("dropped", "live")
    assert not tables() & {f"latent_r{old.run.pk}", f"latent_page_r{old.run.pk}"}
    with pytest.raises(ManagingError, match="nothing left to keep"):
        managing.pin(old.run, True)


def test_a_deleted_sae_leaves_no_row_table_or_file_but_what_says_that_it_was_here(settings: object) -> None:
    settings.COMPUTE_DTYPE = "float32"  # type: ignore[attr-defined]
    lm = demo.a_language_model()
    sae = demo.a_sae(lm)
    run = jobs.new_run(sae, demo.a_dataset(lm), **demo.QUICK)
    jobs.compute_contexts(run.pk, 0)
    folder, was = f"checkpoints/{sae.sha256}", (sae.sha256, run.pk)
    assert storage.current().names(folder) and spool.runs() == {run.pk}
    managing.rename(sae, "otherwise")
    left = managing.delete(sae)
    assert not Sae.objects.exists() and not Run.objects.exists() and not RunShard.objects.exists()
    cleaning.clean()
    assert not storage.current().names(folder) and spool.runs() == set()
    assert not tables() & {f"latent_r{run.pk}", f"latent_page_r{run.pk}"}
    left.refresh_from_db()
    assert (left.sha256, left.runs, left.last_number) == (was[0], [was[1]], 1) and left.cleaned_at is not None
    assert left.slugs == ["otherwise", "resid_post_2_topk16_1024"]
    again = demo.a_sae(lm)
    assert again.sha256 == was[0] and again.slug == "resid_post_2_topk16_1024"
    assert runs.create(again, demo.a_dataset(lm), {}).number == 2  # @r1 never comes to mean another run


def test_files_of_weights_that_were_brought_in_again_before_the_cleaning_stay(settings: object) -> None:
    settings.COMPUTE_DTYPE = "float32"  # type: ignore[attr-defined]
    lm = demo.a_language_model()
    sae = demo.a_sae(lm)
    managing.delete(sae)
    again = demo.a_sae(lm)
    assert cleaning.clean_deleted() == [sae.sha256]
    assert storage.current().names(f"checkpoints/{again.sha256}")


def test_a_live_run_of_a_deleted_sae_is_detached_and_dropped() -> None:
    live = sae_rows.publish()
    managing.delete(live.sae)
    cleaning.clean()
    assert not tables() & {f"latent_r{live.run.pk}", f"latent_page_r{live.run.pk}"}
    with connection.cursor() as cursor:
        cursor.execute("select count(*) from latent where run_id = %s", [live.run.pk])
        assert cursor.fetchone() == (0,)


def test_a_worker_in_the_midst_of_a_deleted_run_leaves_it_and_its_late_messages_do_nothing() -> None:
    run = run_rows.computing()
    claimed = claims.claim(run.pk, CONTEXTS, 0, "gpu-0")
    assert claimed is not None
    managing.delete(run.sae)
    assert claims.heartbeat(claimed, 1) is False and claims.finish_contexts(claimed, checksum=0) is False
    jobs.compute_contexts(run.pk, 0)
    jobs.load_latents(run.pk, 0)
    jobs.publish(run.pk)
    assert queue.cancel(run.pk) is False and not Run.objects.exists()


def test_a_deletion_that_is_killed_before_its_cleaning_is_cleaned_later(tmp_path: Path) -> None:
    live = sae_rows.publish()
    managing.delete(live.sae)
    messages.forget()
    assert DeletedSae.objects.filter(cleaned_at=None).count() == 1
    cleaning.clean()
    assert DeletedSae.objects.filter(cleaned_at=None).count() == 0
