"""Checkpoints of one training on their way in: their steps are told by names or people, and a worker compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.core.management import CommandError, call_command

from sae_backend import jobs, series
from sae_backend.core.checkpoints import load
from sae_backend.models import LanguageModel, Sae, SaeImport, SeriesCosine
from tests.backend import demo, messages

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("quiet")]
STEPS = demo.DEMO / "saes" / "resid_post_2_topk32_4096_ckpts"
HOOK = {"hook_name": "blocks.2.hook_resid_post"}


def imported(lm: LanguageModel, source: Path, **more: Any) -> Sae:
    row = SaeImport.objects.create(name=source.stem, source=str(source), lm=lm, **more)
    jobs.import_sae(row.pk)
    row.refresh_from_db()
    assert row.sae is not None, row.error
    return row.sae


def test_steps_told_by_names_make_a_series_that_is_compared(lm: LanguageModel) -> None:
    first, second = (imported(lm, STEPS / f"step_{n}.pt", options=HOOK) for n in ("00087", "00878"))
    assert [(s.series, s.step) for s in (first, second)] == [(STEPS.name.removesuffix("_ckpts"), n) for n in (87, 878)]
    assert set(messages.carry_out()) == {"align_series"}
    stored = SeriesCosine.objects.get()
    assert (stored.sae, stored.final) == (first, second)
    a, b = (load(STEPS / f"step_{n}.pt", **HOOK).W_dec.numpy() for n in ("00087", "00878"))
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert np.allclose(np.frombuffer(bytes(stored.cos), "<f4"), expected, atol=1e-6)


def test_a_comparison_that_redis_lost_is_sent_again_until_it_is_there(lm: LanguageModel) -> None:
    first, second = (imported(lm, STEPS / f"step_{n}.pt", options=HOOK) for n in ("00087", "00878"))
    assert series.resend(0.0) == 0  # its messages wait
    messages.forget()
    assert series.resend(60.0) == 0  # whoever took them may be at it
    assert series.resend(0.0) == 1 and messages.carry_out() == ["align_series"]
    assert SeriesCosine.objects.get().final == second and series.resend(0.0) == 0
    series.assign(first, second.series, 1000)  # now it is the final one
    messages.forget()
    assert series.resend(0.0) == 1 and messages.carry_out() == ["align_series"]
    assert SeriesCosine.objects.get().sae == second and series.resend(0.0) == 0


def test_what_a_person_says_counts_more_than_names(lm: LanguageModel) -> None:
    said = imported(lm, STEPS / "step_00087.pt", options=HOOK, series="mine", step=5)
    assert (said.series, said.step) == ("mine", 5)
    again = imported(lm, STEPS / "step_00087.pt", options=HOOK, series="other", step=6)
    assert again == said and (again.series, again.step) == ("other", 6)


def test_half_of_it_may_be_said_where_names_tell_the_rest(lm: LanguageModel) -> None:
    said = imported(lm, STEPS / "step_00087.pt", options=HOOK, series="mine")
    assert (said.series, said.step) == ("mine", 87)
    again = imported(lm, STEPS / "step_00087.pt", options=HOOK, step=6)
    assert again == said and (again.series, again.step) == (STEPS.name.removesuffix("_ckpts"), 6)


def test_the_command_asks_for_both(lm: LanguageModel) -> None:
    with pytest.raises(CommandError, match="--series and --step go together"):
        call_command("import_sae", STEPS / "step_00087.pt", model=lm.name, series="mine")
