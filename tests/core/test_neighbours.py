"""Neighbours and D_i against all pairs in float64, whatever the first, rough comparison is made in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_backend.core import neighbours
from sae_backend.core.neighbours import Directions, Nearest

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def cosines(W_dec: torch.Tensor) -> np.ndarray:
    """All pairs as the stored figures round them, NaN for a latent with itself and where a direction is missing."""
    norm = W_dec.norm(dim=1, keepdim=True)
    unit = (W_dec / norm.clamp_min(1e-30)).double().numpy()
    cos = (unit @ unit.T).astype(np.float32)
    cos[norm[:, 0] == 0] = np.nan
    cos[:, norm[:, 0] == 0] = np.nan
    np.fill_diagonal(cos, np.nan)
    return cos


def check(ours: Nearest, W_dec: torch.Tensor, lo: int, hi: int) -> None:
    cos = cosines(W_dec)[lo:hi]
    for side, ids, found in ((-1, ours.nearest, ours.nearest_cos), (1, ours.opposing, ours.opposing_cos)):
        for i in range(hi - lo):
            defined = np.flatnonzero(~np.isnan(cos[i]))
            expected = np.sort(side * cos[i, defined])[: ids.shape[1]] * side
            n = len(expected)
            assert np.allclose(found[i, :n], expected, atol=1e-6)
            assert np.isinf(found[i, n:]).all()
            assert np.allclose(cos[i, ids[i, :n]], found[i, :n], atol=1e-6)
            assert len(set(ids[i, :n])) == n
            assert (np.diff(side * found[i, :n]) >= 0).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 2), (40, 3), (200, 8), (700, 64), (5000, 32)])
def test_neighbours_are_those_of_all_pairs(n: int, d: int, dtype: torch.dtype) -> None:
    W_dec = random(n, d) * torch.linspace(0.1, 9, n)[:, None]
    W_dec[n // 2] = 0  # writes nothing: nobody's neighbour, and without neighbours
    lo, hi = max(0, n - 300), n
    check(Directions(W_dec, dtype).neighbours(lo, hi), W_dec, lo, hi)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 400), st.integers(1, 6), st.integers(0, 9999), st.booleans(), st.sampled_from(sorted(DTYPES)))
def test_directions_of_any_number_and_likeness_are_compared_exactly(
    n: int, d: int, seed: int, coarse: bool, dtype: str
) -> None:
    W_dec = random(n, d, seed)
    W_dec = W_dec.round() if coarse else W_dec  # many equal, opposite and missing directions
    check(Directions(W_dec, DTYPES[dtype]).neighbours(0, n), W_dec, 0, n)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_more_directions_alike_than_are_kept_are_all_compared(dtype: torch.dtype) -> None:
    W_dec = random(1, 16) + 1e-4 * random(1500, 16, 1)
    W_dec[700:] *= -1
    check(Directions(W_dec, dtype).neighbours(0, 20), W_dec, 0, 20)


def test_of_equal_cosines_the_lower_latent_goes_first() -> None:
    W_dec = random(1, 8).repeat(600, 1)
    W_dec[300:] *= -1
    found = Directions(W_dec, torch.bfloat16).neighbours(299, 301)
    assert found.nearest.tolist() == [list(range(10)), list(range(301, 311))]
    assert found.opposing.tolist() == [list(range(300, 310)), list(range(10))]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec = random(900, 24)
    whole = Directions(W_dec, torch.bfloat16).neighbours(0, 900)
    monkeypatch.setattr(neighbours, "_ROWS", 70)
    monkeypatch.setattr(neighbours, "_COLUMNS", 90)
    parts = Directions(W_dec, torch.bfloat16).neighbours(0, 900)
    for name, values in vars(whole).items():
        assert np.array_equal(values, getattr(parts, name)), name


def test_what_an_accelerator_does_gives_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec = random(900, 24)
    W_dec[5] = 0
    monkeypatch.setattr(neighbours, "_ON_DEVICE", 100_000)
    near, near_cos, far, far_cos = Directions(W_dec).on_device(0, 900)
    check(Nearest(near, near_cos, far, far_cos), W_dec, 0, 900)  # type: ignore[arg-type]


@pytest.mark.parametrize("alive", ["all", "some", "none"])
def test_dimensionality_counts_live_latents_and_itself(alive: str) -> None:
    W_dec = random(300, 12)
    W_dec[7] = 0
    live = {"all": torch.ones(300), "none": torch.zeros(300), "some": (torch.arange(300) % 3 > 0).int()}[alive].bool()
    directions = Directions(W_dec)
    ours = directions.dimensionality(50, 300, live, directions.products(live))
    squares = np.nan_to_num(cosines(W_dec).astype(np.float64)) ** 2
    expected = 1 / (1 + (squares * live.numpy()).sum(1))[50:]
    assert np.allclose(ours, expected, rtol=1e-5)
    assert np.isnan(Directions(W_dec).dimensionality(7, 8, live, directions.products(live))).all()
