"""The shell's way to an SAE's settings."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from sae_backend.models import Run, Sae
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db(transaction=True)


def said(*words: str, **options: Any) -> str:
    out = StringIO()
    call_command(*words, stdout=out, **options)
    return out.getvalue()


@pytest.fixture
def live() -> sae_rows.Stats:
    return sae_rows.publish(sae_rows.new_sae("first", slug="first"))


def test_an_sae_is_renamed_computed_again_and_its_old_run_kept_and_dropped(live: sae_rows.Stats) -> None:
    assert "is called second, at /s/second" in said("rename_sae", "first", "second")
    assert "job" in said("rerun_sae", "second", dataset="moonlight", dtype="float32")
    assert Run.objects.get(number=2).config["dtype"] == "float32"
    Run.objects.filter(pk=live.run.pk).update(state=Run.State.RETIRED)
    assert "r1 is kept for ever" in said("pin_run", "second", "r1")
    with pytest.raises(CommandError, match="let it go first"):
        said("drop_run", "second", "1")
    assert "kept no longer" in said("pin_run", "second", "1", "--unpin")
    assert "r1 is dropped" in said("drop_run", live.sae.public_id, "1")


def test_deleting_wants_the_name_once_more(live: sae_rows.Stats, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CommandError, match="This is not its name"):
        said("delete_sae", "first", confirm="fist")
    monkeypatch.setattr("builtins.input", lambda prompt: "first")
    assert "first is deleted" in said("delete_sae", "first")
    assert not Sae.objects.exists()


@pytest.mark.parametrize(
    ("words", "options", "sentence"),
    [
        (("rename_sae", "nobody", "x"), {}, "Nothing here is called"),
        (("rerun_sae", "first"), {"dataset": "nowhere"}, "No data set of this language model"),
        (("drop_run", "first", "7"), {}, "There is no run r7"),
        (("drop_run", "first", "live"), {}, "is no number of a run"),
        (("drop_run", "first", "1"), {}, "what the pages show"),
    ],
)
def test_what_cannot_be_done_is_a_sentence(
    live: sae_rows.Stats, words: tuple[str, ...], options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(CommandError, match=sentence):
        said(*words, **options)
