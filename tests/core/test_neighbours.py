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


def check_live(directions: Directions, W_dec: torch.Tensor, lo: int, hi: int, live: np.ndarray) -> None:
    alive = torch.from_numpy(live)
    ids, cos = directions.nearest_live(lo, hi, directions.neighbours(lo, hi), alive)
    expected = cosines(W_dec)
    expected[:, ~live] = np.nan
    for i in range(lo, hi):
        defined = np.flatnonzero(~np.isnan(expected[i]))
        if not len(defined):
            assert ids[i - lo] == -1 and np.isnan(cos[i - lo])
            continue
        assert abs(cos[i - lo] - expected[i, defined].max()) < 1e-6
        assert live[ids[i - lo]] and ids[i - lo] != i
        assert abs(expected[i, ids[i - lo]] - cos[i - lo]) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.002, 0.03, 0.5, 1.0])
def test_the_nearest_live_latent_is_that_of_all_pairs(dtype: torch.dtype, share: float) -> None:
    W_dec = random(3000, 24)
    W_dec[100:700] = W_dec[100] + 0.01 * random(600, 24, 1)  # a heap, all but one of it dead
    W_dec[7] = 0
    live = np.random.default_rng(0).random(3000) < share
    live[100:700], live[7] = False, True
    live[650] = share > 0
    check_live(Directions(W_dec, dtype), W_dec, 0, 800, live)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 9999), st.sampled_from(sorted(DTYPES)))
def test_few_or_equal_directions_have_their_nearest_live_one(n: int, d: int, seed: int, dtype: str) -> None:
    W_dec = random(n, d, seed).round()
    live = np.random.default_rng(seed).random(n) < 0.2
    check_live(Directions(W_dec, DTYPES[dtype]), W_dec, 0, n, live)


def test_of_equally_near_live_latents_the_lower_is_taken() -> None:
    W_dec = random(1, 8).repeat(900, 1)
    live = torch.zeros(900, dtype=torch.bool)
    live[[600, 800]] = True
    directions = Directions(W_dec, torch.bfloat16)
    assert directions.nearest_live(599, 602, directions.neighbours(599, 602), live)[0].tolist() == [600, 800, 600]


def test_the_nearest_live_latent_does_not_depend_on_how_latents_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec, live = random(900, 24), torch.arange(900) % 97 == 0
    directions = Directions(W_dec, torch.bfloat16)
    whole = directions.nearest_live(0, 900, directions.neighbours(0, 900), live)
    monkeypatch.setattr(neighbours, "_ROWS", 70)
    monkeypatch.setattr(neighbours, "_COLUMNS", 5)
    cuts = [(0, 1), (1, 130), (130, 900)]
    parts = [directions.nearest_live(a, b, directions.neighbours(a, b), live) for a, b in cuts]
    for side in range(2):
        assert np.array_equal(np.concatenate([part[side] for part in parts]), whole[side])


def test_an_accelerator_finds_the_same_nearest_live_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    W_dec, live = random(900, 24), torch.arange(900) % 97 == 0
    monkeypatch.setattr(neighbours, "_ON_DEVICE", 1000)
    directions, rows = Directions(W_dec), torch.arange(900)
    ids, cos = directions._live_on_device(rows, live.nonzero()[:, 0])
    ours = directions.nearest_live(0, 900, directions.neighbours(0, 900), live)
    assert np.array_equal(ids[:, 0], ours[0]) and np.allclose(cos[:, 0], ours[1], atol=1e-6)


def planted() -> torch.Tensor:
    """Sixteen orthogonal directions and, beside them, what `test_planted_directions_are_recovered` looks for."""
    basis = torch.linalg.qr(random(64, 64, 5))[0]
    copies, leaning = [basis[16]] * 4, 0.6 * basis[18] + 0.8 * basis[19]
    rows = [*basis[:16], *copies, basis[17], -basis[17], basis[18], leaning]
    return torch.stack(rows) * torch.linspace(0.5, 3, len(rows))[:, None]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_planted_directions_are_recovered(dtype: torch.dtype) -> None:
    """Orthogonal ones have a dimension each, four copies a quarter of one, an antipodal pair a half; and a dead one."""
    directions, dead = Directions(planted(), dtype), 23
    live = torch.ones(24, dtype=torch.bool)
    live[dead] = False
    found, D = directions.neighbours(0, 24), directions.dimensionality(0, 24, live, directions.products(live))
    assert np.allclose(D, [1.0] * 16 + [1 / 4] * 4 + [1 / 2] * 2 + [1.0] + [1 / 1.36], atol=1e-6)
    assert [found.opposing[20, 0], found.opposing[21, 0]] == [21, 20]
    assert np.allclose(found.opposing_cos[20:22, 0], -1, atol=1e-6)
    assert (np.delete(found.opposing_cos[:, 0], [20, 21]) > -0.01).all()
    for copy, others in enumerate(found.nearest[16:20, :3].tolist(), start=16):
        assert {copy, *others} == {16, 17, 18, 19}  # in which order is rounding's: their lengths differ
    ids, cos = directions.nearest_live(0, 24, found, live)
    assert ids[dead] == 22 and abs(cos[dead] - 0.6) < 1e-6


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
