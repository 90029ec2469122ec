"""The random-direction baseline against closed forms, integration, and directions drawn at random."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sae_backend.core import baseline


@pytest.mark.parametrize("cos", [-0.999, -0.9, -0.5, -0.05, -1e-3, 0.0, 0.3, 0.9])
def test_the_cosine_of_two_directions_has_its_known_distribution(cos: float) -> None:
    assert baseline.below(2, cos) == pytest.approx(1 - math.acos(cos) / math.pi, abs=1e-11)  # the arc
    assert baseline.below(3, cos) == pytest.approx((1 + cos) / 2, abs=1e-11)  # Archimedes' hat box
    for d in (5, 16, 768):
        t = np.linspace(-1, 1, 2_000_001)
        density = (1 - t * t) ** ((d - 3) / 2)
        within = np.trapezoid(density[t <= cos], t[t <= cos]) / np.trapezoid(density, t)
        assert baseline.below(d, cos) == pytest.approx(within, rel=2e-4, abs=1e-6)


def test_the_ends_are_certain() -> None:
    assert baseline.below(64, -1) == 0 and baseline.below(64, 1) == 1
    assert baseline.opposing(1, 64, 0.5) == 0 and baseline.opposing(9, 64, 1.0) == 9
    assert baseline.opposing(2, 3, -0.4) == pytest.approx(0.6)  # both or neither of two, at a chance of 0.3
    assert 0 < baseline.opposing(262_144, 768, -0.7) < 1e-50  # leogao's SAE had 1314 such latents


@pytest.mark.parametrize(("n", "d", "cos"), [(300, 4, -0.97), (400, 8, -0.9), (500, 16, -0.7), (12, 3, -0.9)])
def test_as_many_random_directions_have_an_opposing_one_as_is_expected(n: int, d: int, cos: float) -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        unit = rng.normal(size=(n, d))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        found.append(int(((unit @ unit.T).min(1) < cos).sum()))
    expected, error = baseline.opposing(n, d, cos), np.std(found, ddof=1) / math.sqrt(len(found))
    assert 5 < expected < 0.9 * n
    assert abs(np.mean(found) - expected) < 4 * error


def test_random_directions_have_the_dimensionality_that_is_drawn_as_reference() -> None:
    unit = np.random.default_rng(0).normal(size=(600, 32))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    D = 1 / ((unit @ unit.T) ** 2).sum(1)
    assert np.mean(D) == pytest.approx(baseline.dimensionality(600, 32), rel=0.01)
    assert baseline.dimensionality(1, 32) == 1
