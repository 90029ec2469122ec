"""Charts redraw what was counted: nothing is lost, nothing is invented, bands stay exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from browser import charts
from browser.figures import decimals, ordinal, percentile
from sae_backend.packing import N_INTERVALS, Logits
from tests.browser.latent_rows import histogram_of

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ACTS = st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=60)


@CALM
@given(ACTS)
def test_bars_add_up_to_the_exact_count_of_every_band(acts: list[float]) -> None:
    histogram = histogram_of(acts)
    counts = charts.linear_counts(histogram, max(acts), N_INTERVALS * charts.BARS_PER_BAND)
    assert (counts >= 0).all()
    assert counts.reshape(N_INTERVALS, -1).sum(1).tolist() == histogram.intervals.tolist()


@CALM
@given(ACTS)
def test_the_strongest_firing_is_in_the_last_bar(acts: list[float]) -> None:
    counts = charts.linear_counts(histogram_of(acts), max(acts), 60)
    assert counts[-1] >= 1


def test_a_bar_is_near_the_true_count_where_activations_are_many() -> None:
    acts = np.random.default_rng(0).exponential(1.0, 20_000)
    top = float(acts.max())
    true, _ = np.histogram(acts, 60, (0, top))
    drawn = charts.linear_counts(histogram_of(acts), top, 60)
    assert np.abs(drawn - true)[:20].max() < 0.1 * true[:20].max()


def test_a_single_firing_is_one_bar_of_one() -> None:
    chart = charts.activations(histogram_of([3.7]), 3.7)
    assert chart.firings == 1
    assert [b.name for b in chart.bars] == ["bb10"]
    assert chart.bars[0].path.count("M") == 1
    assert [t.text for t in chart.ticks] == ["1"]


def test_bands_have_equal_width_and_the_stored_counts() -> None:
    chart = charts.activations(histogram_of([0.5, 1.0, 9.5, 10.0]), 10.0)
    assert [(b.number, b.low, b.high) for b in chart.bands][:2] == [(1, 0.0, 1.0), (2, 1.0, 2.0)]
    assert [b.firings for b in chart.bands] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert [b.name for b in chart.bars] == ["bb1", "bb10"]


@pytest.mark.parametrize(
    ("ceiling", "texts"), [(5, ["1"]), (250, ["1", "10", "100"]), (2 * 10**6, ["1", "100", "10k", "1M"])]
)
def test_the_count_axis_has_few_powers_of_ten(ceiling: int, texts: list[str]) -> None:
    ticks = charts._decades(ceiling)
    assert [t.text for t in ticks] == texts
    assert all(0 < t.at <= 100 for t in ticks)


def logits(low: float, high: float, counts: list[int]) -> Logits:
    none, nothing = np.zeros(0, np.uint32), np.zeros(0, np.float32)
    return Logits(none, nothing, none, nothing, low, high, np.array(counts, np.uint32))


def test_logit_effects_beyond_two_deviations_are_apart_and_zero_is_marked() -> None:
    chart = charts.logits(logits(-1.0, 1.0, [1, 5, 9, 1]), 0.3)
    assert chart is not None
    assert [b.name for b in chart.bars] == ["ng", "", "on"]
    assert [(t.at, t.text) for t in chart.ticks] == [(0, "−1.00"), (100, "1.00"), (50.0, "0")]
    assert chart.tokens == 16


def test_a_model_without_unembedding_has_no_logit_chart() -> None:
    assert charts.logits(logits(0.0, 0.0, []), None) is None


def test_a_percentile_is_the_middle_of_its_equals() -> None:
    quantiles = [float(i) for i in range(101)]
    assert [percentile(quantiles, v) for v in (-5.0, 0.0, 41.0, 41.5, 100.0, 200.0)] == [
        0,
        0,
        41,
        41,
        100,
        100,
    ]
    assert percentile([1.0] * 101, 1.0) == 50
    assert percentile(None, 1.0) is None
    assert percentile(quantiles, None) is None


def test_figures_are_worded() -> None:
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 41, 93, 100)] == [
        "1st",
        "2nd",
        "3rd",
        "4th",
        "11th",
        "12th",
        "13th",
        "21st",
        "41st",
        "93rd",
        "100th",
    ]
    assert [decimals(top) for top in (0.0, 0.0482, 0.482, 4.82, 48.2, 482.0, 4820.0)] == [1, 4, 3, 2, 1, 0, 0]
