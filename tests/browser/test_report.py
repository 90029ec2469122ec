"""The distribution of L0 and the figures of a finished run, as listed on its job's page."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from django.test import Client

from browser import plots, report
from browser.templatetags.latent_tags import THIN
from tests.browser import sae_rows

RNG = np.random.default_rng(0)


def summary(counts: list[int]) -> dict[str, Any]:
    """Of tokens with so many active latents each."""
    values, tokens = np.unique(counts, return_counts=True)
    histogram = [list(pair) for pair in zip(values.tolist(), tokens.tolist(), strict=True)]
    return {"l0": float(np.mean(counts)), "l0_histogram": histogram}


def bars(path: str) -> list[tuple[float, float]]:
    """Left edge and height of each bar."""
    return [(float(x), float(h)) for x, h in re.findall(r"M([\d.]+) 100v-([\d.]+)", path)]


@pytest.mark.parametrize("counts", [[3], [1, 2], list(range(100)), [0, 0, 0, 7], RNG.poisson(40, 1000).tolist()])
def test_percentiles_are_those_of_the_tokens(counts: list[int]) -> None:
    found = plots.l0_centiles(summary(counts)["l0_histogram"], [5, 50, 95, 100])
    assert found == np.percentile(counts, [5, 50, 95, 100], method="inverted_cdf").tolist()


def test_every_token_is_in_a_bar_or_beyond_the_end() -> None:
    counts = [*RNG.poisson(200, 5000).tolist(), 4000]
    chart = plots.l0(summary(counts))
    assert chart is not None and len(bars(chart.path)) <= plots.L0_BARS
    ceiling = float(chart.yticks[-1].text)
    shown = sum(h for _, h in bars(chart.path)) * ceiling / 100
    assert shown + 100 * chart.beyond == pytest.approx(100, abs=0.5)
    assert 0 < chart.beyond <= 0.0012
    assert chart.says.startswith(f"L0 over the tokens: mean {np.mean(counts):.1f}, median ")


def test_the_mean_stands_among_the_bars_it_is_the_mean_of() -> None:
    chart = plots.l0(summary([10] * 50 + [11] * 50))
    assert chart is not None
    (left, a), (right, b) = bars(chart.path)
    assert a == b and (left, right) == pytest.approx((2.5, 52.5))
    assert chart.mean.at == 50 and chart.mean.text == "mean 10.5"
    assert [(t.at, t.text) for t in chart.xticks] == [(25, "10"), (75, "11")]


@pytest.mark.parametrize("known", [{}, summary([32] * 10)])
def test_nothing_is_drawn_where_every_token_has_the_same_or_nothing_is_known(known: dict[str, Any]) -> None:
    assert plots.l0(known) is None


def test_figures_are_listed_as_far_as_the_run_has_them() -> None:
    counts = {"alive": 1200, "rare": 3, "dead": 0, "dense": 0}
    whole = {**sae_rows.FIGURES, **summary([7] * 19 + [31]), "counts": counts}
    whole["basis_kurtosis"] = {"plain": 6.1234, "rotated": 3.02, "tokens": 100}
    whole["dtype_difference"] = {"firings_kept": 0.9881, "act": 0.007, "fvu": [0.06771, 0.06762], "l0": [32, 32]}
    found = {figure.name: figure.text for figure in report.figures(whole)}
    assert found["L0"] == "8.2 (median 7; 7 to 7)" and found["Latents"] == f"1{THIN}200 alive, 3 rare"
    assert found["CE recovered"] == f"97.9{THIN}% (3.316 → 3.482 nats)" and found["Computed in"] == "float32 on cpu"
    assert found["Basis kurtosis"] == "6.12 (rotated 3.02)"
    changed = f"98.8{THIN}% of firings kept, activations off by 0.7{THIN}%, FVU 0.0677 for 0.0676"
    assert found["Against float32"] == changed
    assert report.figures({}) == []
    assert "Against float32" not in [f.name for f in report.figures({**whole, "dtype_difference": None})]
    without = [figure.name for figure in report.figures({**whole, "ce": None, "fvu": None})]
    assert "CE recovered" not in without and "L0" in without
    assert next(f.text for f in report.figures({**whole, "fvu": None}) if f.name == "FVU") == "—"


@pytest.mark.django_db(transaction=True)
def test_the_job_of_a_finished_run_lists_its_figures_and_the_sae_page_draws_l0(client: Client) -> None:
    stats = sae_rows.publish(figures={**sae_rows.FIGURES, **summary([7] * 10 + [9] * 10)})
    job = client.get(f"/jobs/{stats.run.pk}").content.decode()
    assert "Figures of this run" in job and "8.0 (median 7; 7 to 9)" in job
    page = client.get(f"/s/{stats.sae.public_id}").content.decode()
    assert "L0 over the tokens: mean 8.0, median 7, nine tenths between 7 and 9." in page
