"""Draws from bands and from all firings are uniform, over tokens and over pairs of tokens, and independent.

Through stored shards and `LatentPass`, with fixed seeds: a test gives the same numbers every time. A statistic is
measured in standard deviations from what NumPy's own uniform draws give; faulty samplers must stand far out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from sae_backend.core.activations import ActivationShard
from sae_backend.core.config import RunConfig
from sae_backend.core.decoder import Decoder
from sae_backend.core.run import LatentPass
from sae_backend.packing import N_INTERVALS, RANDOM
from tests.core.outcome import places
from tests.core.small import small_sae

LATENTS, FIRINGS, CTX_LEN = 2000, 50, 64
WEAK, STRONG = 4, N_INTERVALS  # bands of every other firing; each is drawn from for itself
SIZES = {WEAK: (25, 5), STRONG: (25, 5), RANDOM: (50, 10)}  # firings, and draws from them
STRIDES = [1, CTX_LEN, 4096]  # tokens from one firing to the next: side by side, one a context, one in many
USUAL = 4.5
Draws = npt.NDArray[np.int64]  # [latents draws] numbers of the firings drawn
Statistic = Callable[..., float]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Draws]:
    @lru_cache
    def shown(stride: int, kind: int, seed: int = 0) -> Draws:
        folder = tmp_path_factory.mktemp("shards")
        store(folder, 3 + stride * np.arange(FIRINGS), np.where(np.arange(FIRINGS) % 2, 1.0, 0.35))
        decoder = Decoder(small_sae("standard", d_sae=LATENTS, d_in=2), None)
        shard = LatentPass(sorted(folder.iterdir()), decoder, RunConfig(seed=seed, top=1)).shard(0, LATENTS)
        tokens = np.array([[c * CTX_LEN + p for c, p in of_latent] for of_latent in places(shard, kind)])
        numbers = (tokens - 3) // stride
        return numbers if kind == RANDOM else numbers // 2

    return shown


def store(folder: Path, token: npt.NDArray[np.int64], act: npt.NDArray[np.float64]) -> None:
    """Two shards in which every latent fires at these tokens with these activations."""
    end = int(token[-1]) // CTX_LEN + 2
    middle = end // 2
    for a, b in [(0, middle), (middle, end)]:
        here = (token >= a * CTX_LEN) & (token < b * CTX_LEN)
        row, n = (token[here] - a * CTX_LEN).astype(np.uint32), int(here.sum())
        firings = np.tile(row, LATENTS), np.tile(act[here].astype(np.float32), LATENTS)
        sums = {"tokens": (b - a) * CTX_LEN, "l0": {}}
        tokens = np.zeros((b - a, CTX_LEN), np.uint32)
        ActivationShard(a, tokens, n * np.arange(LATENTS + 1), *firings, sums).save(folder / f"{a}.safetensors")


def deviations(counts: npt.NDArray[np.int64]) -> float:
    return float(((counts - counts.mean()) ** 2).sum())


def of_places(draws: Draws, n: int) -> float:
    """How unevenly often each firing is drawn."""
    return deviations(np.bincount(draws.ravel(), minlength=n))


def of_pairs(draws: Draws, n: int) -> float:
    """How unevenly often two firings are drawn together."""
    chosen = np.zeros((len(draws), n))
    np.put_along_axis(chosen, draws, 1, 1)
    return deviations((chosen.T @ chosen)[np.triu_indices(n, 1)].astype(np.int64))


def between(draws: Draws, n: int, others: Draws) -> float:
    """How unevenly often two firings are drawn, one here and one by others."""
    chosen, theirs = np.zeros((2, len(draws), n))
    np.put_along_axis(chosen, draws, 1, 1)
    np.put_along_axis(theirs, others, 1, 1)
    return deviations((chosen.T @ theirs).astype(np.int64))


@lru_cache
def uniform(kind: int, number: int) -> Draws:
    n, k = SIZES[kind]
    return np.random.default_rng(number).random((LATENTS, n)).argsort(1)[:, :k]


@lru_cache
def usual(statistic: Statistic, kind: int, parts: int) -> tuple[float, float]:
    """Mean and standard deviation of the statistic of uniform draws."""
    n = SIZES[kind][0]
    found = [statistic(uniform(kind, 2 * i), n, *(uniform(kind, 2 * i + 1),) * (parts - 1)) for i in range(50)]
    return float(np.mean(found)), float(np.std(found))


def unusual(statistic: Statistic, kind: int, draws: Draws, *others: Draws) -> float:
    """Standard deviations by which the statistic of these draws lies off that of uniform ones."""
    mean, deviation = usual(statistic, kind, 1 + len(others))
    return (statistic(draws, SIZES[kind][0], *others) - mean) / deviation


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kind", SIZES)
def test_every_firing_and_every_pair_of_firings_is_drawn_equally_often(
    drawn: Callable[..., Draws], kind: int, stride: int
) -> None:
    draws = drawn(stride, kind)
    assert draws.shape == (LATENTS, SIZES[kind][1])
    assert abs(unusual(of_places, kind, draws)) < USUAL
    assert abs(unusual(of_pairs, kind, draws)) < USUAL


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kind", SIZES)
def test_draws_of_two_seeds_and_of_two_latents_are_independent(
    drawn: Callable[..., Draws], kind: int, stride: int
) -> None:
    draws = drawn(stride, kind)
    for seed in (1, 2, 1000):
        assert abs(unusual(between, kind, draws, drawn(stride, kind, seed))) < USUAL, seed
    for step in (1, 2, 7, 64):
        assert abs(unusual(between, kind, draws, np.roll(draws, step, axis=0))) < USUAL, step


@pytest.mark.parametrize("stride", STRIDES)
def test_draws_from_two_bands_and_from_all_firings_are_independent(drawn: Callable[..., Draws], stride: int) -> None:
    assert abs(unusual(between, WEAK, drawn(stride, WEAK), drawn(stride, STRONG))) < USUAL
    everywhere = drawn(stride, RANDOM)
    kept = np.array([(row[row % 2 == 0] // 2).tolist()[:2] for row in everywhere if (row % 2 == 0).sum() >= 2])
    enough = (everywhere % 2 == 0).sum(1) >= 2
    overlap = [len(set(a) & set(b)) for a, b in zip(kept.tolist(), drawn(stride, WEAK)[enough].tolist(), strict=True)]
    expected = 2 * 5 / 25  # of two of 25 with five of the same
    assert abs(np.mean(overlap) - expected) < USUAL * np.std(overlap) / np.sqrt(len(overlap))


def systematic(kind: int) -> Draws:
    """Every so many firings from a random one on: each equally often, but never two neighbours."""
    n, k = SIZES[kind]
    start = np.random.default_rng(0).integers(0, n, LATENTS)
    return (start[:, None] + np.arange(k) * (n // k)) % n


def unmixed(kind: int, seed: int = 0) -> Draws:
    """By the smallest of a linear hash."""
    n, k = SIZES[kind]
    token, latent = np.arange(n, dtype=np.uint64), np.arange(LATENTS, dtype=np.uint64)[:, None]
    with np.errstate(over="ignore"):
        hashes = (
            token * np.uint64(0x9E3779B97F4A7C15) + latent * np.uint64(0xC2B2AE3D27D4EB4F) + np.uint64(seed * 10**15)
        )
    return hashes.argsort(1)[:, :k]


@pytest.mark.parametrize("kind", SIZES)
def test_faulty_draws_are_seen(kind: int) -> None:
    n, k = SIZES[kind]
    first = np.tile(np.arange(k), (LATENTS, 1))
    mostly_even = np.where(np.random.default_rng(1).random((LATENTS, 1)) < 0.05, first, uniform(kind, 7))
    assert unusual(of_places, kind, mostly_even) > 2 * USUAL
    assert abs(unusual(of_places, kind, systematic(kind))) < 2 * USUAL
    assert unusual(of_pairs, kind, systematic(kind)) > 2 * USUAL
    assert unusual(of_pairs, kind, unmixed(kind)) > 2 * USUAL
    assert unusual(between, kind, unmixed(kind), unmixed(kind, 1)) > 2 * USUAL
    assert unusual(between, kind, uniform(kind, 3), (uniform(kind, 3) + 1) % n) > 2 * USUAL
