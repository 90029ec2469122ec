"""Effects on the logits, row by row, against NumPy: ties, ranges, flat rows, vocabularies shorter than a vector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sae_backend.core import page_kernels

BINS = 50


@dataclass
class Reduced:
    up: np.ndarray
    up_effect: np.ndarray
    down: np.ndarray
    down_effect: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    powers: np.ndarray


def reduced(effect: np.ndarray, m: int = 10, place: np.ndarray | None = None) -> Reduced:
    n, d_vocab = effect.shape
    m = min(m, d_vocab)
    ids, values = np.full((2, n, m), 2**32 - 1, np.uint32), np.full((2, n, m), np.nan, np.float32)
    low, high = np.full((2, n), np.nan, np.float32)
    counts, powers = np.full((n, BINS), 7, np.uint32), np.full((n, 3), np.nan)
    out = Reduced(ids[0], values[0], ids[1], values[1], low, high, counts, powers)
    page_kernels.effects(effect, np.arange(n) if place is None else place, *vars(out).values())
    return out


def centred(effect: np.ndarray) -> np.ndarray:
    return effect - effect.mean(1, dtype=np.float64, keepdims=True).astype(np.float32)


def assert_reduced(effect: np.ndarray) -> None:
    ours, x = reduced(effect), centred(effect)
    order, reverse = np.argsort(-x, axis=1, kind="stable"), np.argsort(x, axis=1, kind="stable")
    m = ours.up.shape[1]
    assert np.array_equal(ours.up, order[:, :m])
    assert np.array_equal(ours.down, reverse[:, :m])
    assert np.array_equal(ours.up_effect, np.take_along_axis(x, order[:, :m], 1))
    assert np.array_equal(ours.down_effect, np.take_along_axis(x, reverse[:, :m], 1))
    assert np.array_equal(ours.low, x.min(1)) and np.array_equal(ours.high, x.max(1))
    width = np.maximum(x.max(1) - x.min(1), np.float32(1e-30))
    bins = ((x - x.min(1, keepdims=True)) * (np.float32(BINS) / width)[:, None]).astype(int).clip(0, BINS - 1)
    assert np.array_equal(ours.counts, [np.bincount(row, minlength=BINS) for row in bins])
    for k, power in enumerate((2, 3, 4)):
        terms = x.astype(np.float64) ** power
        assert np.allclose(ours.powers[:, k], terms.mean(1), rtol=1e-12, atol=1e-13 * np.abs(terms).max())


@pytest.mark.parametrize("d_vocab", [1, 2, 9, 10, 11, 63, 64, 65, 128, 1000, 5003])
def test_effects_of_any_vocabulary_are_reduced_as_by_numpy(d_vocab: int) -> None:
    g = np.random.default_rng(d_vocab)
    assert_reduced((g.standard_normal((20, d_vocab)) + 3).astype(np.float32))
    assert_reduced((g.standard_normal((20, d_vocab)) ** 5).astype(np.float32))  # nearly all in one bin


@pytest.mark.parametrize("levels", [1, 2, 3, 8])
@pytest.mark.parametrize("d_vocab", [5, 64, 700])
def test_ties_go_to_the_lower_token_both_ways(levels: int, d_vocab: int) -> None:
    effect = np.random.default_rng(0).integers(0, levels, (20, d_vocab)).astype(np.float32)
    assert_reduced(effect)
    ours = reduced(np.zeros((1, 64), np.float32))
    assert ours.up[0].tolist() == ours.down[0].tolist() == list(range(10))
    assert ours.counts[0].tolist() == [64] + [0] * 49


FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


@settings(max_examples=150, deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=90), elements=FLOATS))
def test_any_effects_are_reduced_as_by_numpy(effect: np.ndarray) -> None:
    assert_reduced(effect)


def test_rows_go_to_their_places() -> None:
    effect = np.random.default_rng(1).standard_normal((3, 200)).astype(np.float32)
    whole, place = reduced(effect), np.array([2, 0, 1])
    moved = reduced(effect, place=place)
    for name, values in vars(whole).items():
        assert np.array_equal(getattr(moved, name)[place], values), name
