"""Statistics and histograms of latents, against their definitions on dense activations."""

from __future__ import annotations

import numpy as np
import pytest

from sae_backend.core.results import ALIVE, DEAD, DENSE, RARE, status_of
from sae_backend.core.stats import histograms, latent_stats, sparks
from sae_backend.packing import N_BINS, bin_edges
from tests.core import brute

N = 400


def drawn(seed: int = 0) -> np.ndarray:
    """Activations of 12 latents of every density, [N 12]; the first is dead."""
    g = np.random.default_rng(seed)
    density = np.array([0, 0.004, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.99, 1])
    values = np.exp(2 * g.standard_normal((N, 12))) * 10.0 ** g.integers(-3, 4, 12)
    return np.where(g.random((N, 12)) < density, values, 0).astype(np.float32)


def assert_defined(acts: np.ndarray, rtol: float = 1e-9) -> None:
    ours = latent_stats(brute.rows(acts), len(acts))
    for i in range(acts.shape[1]):
        for name, expected in brute.stats(acts[:, i]).items():
            assert np.allclose(getattr(ours, name)[i], expected, rtol, 0, equal_nan=True), (i, name)


@pytest.mark.parametrize("seed", range(5))
def test_statistics_follow_their_definitions(seed: int) -> None:
    assert_defined(drawn(seed))


def test_a_small_spread_about_a_large_mean_does_not_cancel() -> None:
    g = np.random.default_rng(1)
    near = (1e4 + 1e-3 * g.integers(-3, 4, (N, 3))).astype(np.float32)
    near[:, 1] *= g.random(N) < 0.5
    assert_defined(near)
    ours = latent_stats(brute.rows(near), N)
    assert 1e-3 < ours.std_act[0] < 3e-3
    assert 1.5 < ours.kurtosis[0] < 2.5  # of seven equally likely steps: 2


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_moments_hold_at_any_scale(scale: float) -> None:
    assert_defined((drawn() * scale).astype(np.float32))


@pytest.mark.parametrize("firings", [1, 2, 3])
def test_fewer_than_four_firings_have_a_mean_and_a_maximum_but_no_shape(firings: int) -> None:
    acts = np.zeros((N, 1), np.float32)
    acts[:firings, 0] = 1 + np.arange(firings)
    ours = latent_stats(brute.rows(acts), N)
    assert ours.max_act[0] == firings
    assert ours.mean_act[0] == (firings + 1) / 2
    assert np.isnan([ours.std_act[0], ours.skewness[0], ours.kurtosis[0]]).all()
    assert np.isfinite([ours.kurtosis_all[0], ours.kurtosis_zero[0]]).all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7e-5, 12345.678])
@pytest.mark.parametrize("firings", [4, 7, N])
def test_equal_activations_have_no_spread(value: float, firings: int) -> None:
    acts = np.zeros((N, 1), np.float32)
    acts[:firings, 0] = value
    ours = latent_stats(brute.rows(acts), N)
    assert ours.mean_act[0] == ours.max_act[0] == np.float32(value)
    assert np.isnan([ours.std_act[0], ours.skewness[0], ours.kurtosis[0]]).all()
    assert np.isnan(ours.kurtosis_all[0]) == (firings == N)


def test_a_dead_latent_has_nothing_but_its_count() -> None:
    ours = latent_stats(brute.rows(np.zeros((N, 2), np.float32)), N)
    assert ours.firings.tolist() == [0, 0]
    assert ours.density.tolist() == [0, 0]
    assert ours.status.tolist() == [DEAD, DEAD]
    shapes = (ours.max_act, ours.mean_act, ours.std_act, ours.skewness, ours.kurtosis)
    assert np.isnan([*shapes, ours.kurtosis_all, ours.kurtosis_zero]).all()


def test_kurtosis_about_zero_is_that_over_firings_divided_by_density() -> None:
    acts = drawn()[:, 4]
    on = acts[acts > 0].astype(np.float64)
    ours = latent_stats(brute.rows(acts[:, None]), N)
    assert ours.kurtosis_zero[0] == pytest.approx((on**4).mean() / (on**2).mean() ** 2 / ours.density[0])


def test_a_gaussian_has_kurtosis_three() -> None:
    acts = (20 + np.random.default_rng(0).standard_normal((200_000, 1))).astype(np.float32)
    assert latent_stats(brute.rows(acts), len(acts)).kurtosis[0] == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize(
    ("firings", "n_tokens", "status"),
    [
        (0, 10, DEAD),
        (9, 1000, RARE),
        (10, 1000, ALIVE),
        (9, 10, RARE),  # too few to call it dense
        (100, 1000, ALIVE),  # 0.1 exactly
        (101, 1000, DENSE),
        (20, 2_000_000, ALIVE),  # 1e-5 exactly
        (19, 2_000_000, RARE),
    ],
)
def test_status_changes_at_its_borders(firings: int, n_tokens: int, status: int) -> None:
    assert status_of(np.array([firings]), n_tokens).tolist() == [status]


def test_histogram_counts_lie_between_the_edges_of_their_bins_and_add_up_to_the_firings() -> None:
    acts = np.minimum(drawn(), 65000)
    for i, ours in enumerate(histograms(brute.rows(acts))):
        on = acts[acts[:, i] > 0, i].astype(np.float64)
        edges = bin_edges(ours.first_bin + np.arange(len(ours.counts) + 1))
        assert ours.counts.tolist() == (np.histogram(on, edges)[0].tolist() if len(on) else [])
        assert ours.counts.sum() == ours.intervals.sum() == len(on)
        if len(on):
            assert ours.counts[0] > 0
            assert ours.counts[-1] > 0


def test_an_activation_on_an_edge_counts_in_the_bin_above() -> None:
    edges = bin_edges(np.arange(100, 140)).astype(np.float32)[:, None]
    ours = histograms(brute.rows(edges))[0]
    assert ours.first_bin == 100
    assert ours.counts.tolist() == [1] * 40


def test_activations_outside_the_bins_count_in_the_end_bins() -> None:
    ours = histograms(brute.rows(np.array([[1e-9], [1e9], [2.0**20]], np.float32)))[0]
    assert ours.first_bin == 0
    assert len(ours.counts) == N_BINS
    assert (ours.counts[0], ours.counts[-1], ours.counts.sum()) == (1, 2, 3)


def test_there_are_eight_bins_an_octave() -> None:
    edges = bin_edges(np.arange(N_BINS + 1))
    assert np.array_equal(edges[8:], 2 * edges[:-8])
    assert np.all(np.diff(edges) > 0)
    assert edges[0] == 2.0**-16


def test_intervals_are_bands_of_equal_width_below_the_maximum() -> None:
    acts = drawn()
    for i, ours in enumerate(histograms(brute.rows(acts))):
        expected = np.bincount(brute.band(acts[:, i]), minlength=11)[1:]
        assert ours.intervals.tolist() == expected.tolist()


def test_the_upper_edge_of_a_band_belongs_to_it() -> None:
    acts = np.arange(1, 11, dtype=np.float32)[:, None]  # the maximum, 10, makes whole numbers the edges
    assert histograms(brute.rows(acts))[0].intervals.tolist() == [1] * 10


def test_sparks_are_square_roots_of_the_linear_histogram() -> None:
    acts = np.repeat(np.arange(1, 19, dtype=np.float32), [4] + [1] * 17)[:, None]
    bars = sparks(brute.rows(np.concatenate([acts, np.zeros_like(acts)], axis=1)))
    assert bars[0].tolist() == [255] + [128] * 17
    assert bars[1].tolist() == [0] * 18
