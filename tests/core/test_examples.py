"""Which contexts are shown: the strongest, and uniform draws that do not depend on how the work was cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from sae_backend.core.activations import Rows
from sae_backend.core.config import RunConfig
from sae_backend.core.examples import choose, strongest_tokens
from sae_backend.core.results import ExamplesByLatent
from sae_backend.packing import N_INTERVALS, RANDOM, TOP, Examples
from tests.core import brute

CONTEXTS, CTX_LEN, LATENTS = 30, 20, 6
CFG = RunConfig(top=8)


def drawn(seed: int = 0, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(acts [CONTEXTS·CTX_LEN LATENTS], tokens [CONTEXTS CTX_LEN]); few levels make ties, the last latent is dead."""
    g = np.random.default_rng(seed)
    size = (CONTEXTS * CTX_LEN, LATENTS)
    values = g.integers(1, levels + 1, size) if levels else np.exp(g.standard_normal(size))
    acts = np.where(g.random(size) < [0.5, 0.1, 0.02, 0.01, 1, 0], values, 0).astype(np.float32)
    return acts, g.integers(0, 1000, (CONTEXTS, CTX_LEN)).astype(np.uint32)


def of_kind(e: Examples, kind: int) -> list[tuple[int, int]]:
    chosen = e.interval == kind
    return list(zip(e.context[chosen].tolist(), e.peak[chosen].tolist(), strict=True))


def chosen(acts: np.ndarray, tokens: np.ndarray, cfg: RunConfig = CFG) -> ExamplesByLatent:
    return choose(brute.rows(acts), 0, tokens, cfg)


@pytest.mark.parametrize("levels", [None, 3, 1])
def test_top_contexts_are_the_strongest_one_a_context_ties_to_the_earlier(levels: int | None) -> None:
    acts, tokens = drawn(levels=levels)
    for i, e in enumerate(chosen(acts, tokens)):
        expected = brute.top_contexts(acts[:, i].reshape(CONTEXTS, CTX_LEN), tokens, CFG.top, CFG.duplicate_reach)
        assert of_kind(e, TOP) == expected


@pytest.mark.parametrize("levels", [None, 40, 1])
@pytest.mark.parametrize(("contexts", "ctx_len"), [(401, 20), (20, 401)])
@pytest.mark.parametrize("kinds", [1000, 2], ids=["different windows", "few windows"])
def test_top_contexts_of_latents_that_fire_often(levels: int | None, contexts: int, ctx_len: int, kinds: int) -> None:
    """So often that only firings as strong as the strongest of some groups are looked at: most often these suffice."""
    g = np.random.default_rng(0)
    size = (contexts * ctx_len, 3)
    values = g.integers(1, levels + 1, size) if levels else np.exp(g.standard_normal(size))
    acts = np.where(g.random(size) < [1, 0.5, 0.25], values, 0).astype(np.float32)
    acts[3 * ctx_len : 6 * ctx_len, 1] *= 100  # the strongest are in three contexts
    acts[-1] = 1e6
    tokens = np.repeat(g.integers(0, kinds, (contexts, 1)), ctx_len, 1).astype(np.uint32)
    for i, e in enumerate(chosen(acts, tokens)):
        expected = brute.top_contexts(acts[:, i].reshape(contexts, ctx_len), tokens, CFG.top, CFG.duplicate_reach)
        assert of_kind(e, TOP) == expected


def test_windows_of_equal_tokens_are_shown_once_the_strongest() -> None:
    acts, tokens = drawn()
    tokens[:] = np.arange(CONTEXTS)[:, None] // 10  # three kinds of contexts, each of one token
    for i, e in enumerate(chosen(acts, tokens)):
        expected = brute.top_contexts(acts[:, i].reshape(CONTEXTS, CTX_LEN), tokens, CFG.top, CFG.duplicate_reach)
        assert of_kind(e, TOP) == expected


def test_windows_that_differ_beyond_the_reach_are_near_duplicates_and_within_it_are_not() -> None:
    acts = np.zeros((3, CTX_LEN, 1), np.float32)
    acts[:, 10, 0] = 3, 2, 1
    tokens = np.zeros((3, CTX_LEN), np.uint32)
    tokens[1, 19], tokens[2, 18] = 1, 1  # 9 and 8 places after the peak
    assert of_kind(chosen(acts.reshape(-1, 1), tokens)[0], TOP) == [(0, 10), (2, 10)]


def test_fewer_contexts_than_asked_are_all_shown_and_a_dead_latent_shows_none() -> None:
    acts, tokens = drawn()
    *_, rare, _, dead = chosen(acts, tokens)
    assert 0 < len(of_kind(rare, TOP)) < CFG.top
    assert len(dead.interval) == len(dead.act) == 0
    assert dead.offsets.tolist() == [0]


@pytest.mark.parametrize("levels", [None, 4])
def test_draws_lie_in_their_band_at_most_five_and_all_where_there_are_fewer(levels: int | None) -> None:
    acts, tokens = drawn(levels=levels)
    for i, e in enumerate(chosen(acts, tokens)):
        bands = brute.band(acts[:, i]) if acts[:, i].any() else np.zeros(len(acts), int)
        for band in range(1, N_INTERVALS + 1):
            places = [c * CTX_LEN + p for c, p in of_kind(e, band)]
            assert len(places) == len(set(places)) == min(CFG.per_interval, (bands == band).sum())
            assert (bands[places] == band).all()


def test_random_draws_are_firings_without_repetition() -> None:
    acts, tokens = drawn()
    for i, e in enumerate(chosen(acts, tokens)):
        places = [c * CTX_LEN + p for c, p in of_kind(e, RANDOM)]
        assert len(places) == len(set(places)) == min(CFG.random, np.count_nonzero(acts[:, i]))
        assert (acts[places, i] > 0).all()


def test_activations_across_each_context_are_the_dense_ones() -> None:
    acts, tokens = drawn()
    for i, e in enumerate(chosen(acts, tokens)):
        for j, (a, b) in enumerate(pairwise(e.offsets.tolist())):
            row = np.zeros(CTX_LEN, np.float32)
            row[e.position[a:b]] = e.act[a:b]
            assert np.array_equal(row, acts[:, i].reshape(CONTEXTS, CTX_LEN)[e.context[j]])
            assert row[e.peak[j]] > 0


def test_examples_come_by_kind_the_strongest_first() -> None:
    acts, tokens = drawn()
    for i, e in enumerate(chosen(acts, tokens)):
        peak_acts = acts[e.context.astype(int) * CTX_LEN + e.peak, i]
        order = np.lexsort((-peak_acts, e.interval))
        assert np.array_equal(peak_acts[order], peak_acts)
        assert np.array_equal(e.interval[order], e.interval)


def chi_square(draws: list[list[int]], n: int) -> float:
    counts = np.bincount(np.concatenate(draws), minlength=n)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


@pytest.mark.parametrize("kind", [N_INTERVALS, RANDOM])
def test_draws_are_uniform_over_seeds(kind: int) -> None:
    acts, tokens = np.full((CONTEXTS * CTX_LEN, 1), 1, np.float32), drawn()[1]
    acts[40:] = 0  # 40 firings, all in the uppermost band
    seeds = [replace(CFG, seed=s) for s in range(800)]
    draws = [[c * CTX_LEN + p for c, p in of_kind(chosen(acts, tokens, cfg)[0], kind)] for cfg in seeds]
    assert 12 < chi_square(draws, 40) < 73  # 39 degrees of freedom: p between 1e-5 and 1 - 1e-3


@pytest.mark.parametrize("kind", [N_INTERVALS, RANDOM])
def test_draws_are_uniform_over_latents(kind: int) -> None:
    acts, tokens = np.zeros((CONTEXTS * CTX_LEN, 1000), np.float32), drawn()[1]
    acts[100:140] = 1
    draws = [[c * CTX_LEN + p - 100 for c, p in of_kind(e, kind)] for e in chosen(acts, tokens)]
    assert 12 < chi_square(draws, 40) < 73


def test_draws_change_with_the_seed_and_top_contexts_do_not() -> None:
    acts, tokens = drawn()
    a, b = (chosen(acts, tokens, replace(CFG, seed=s))[0] for s in (0, 1))
    assert of_kind(a, TOP) == of_kind(b, TOP)
    assert of_kind(a, RANDOM) != of_kind(b, RANDOM)


@pytest.mark.parametrize("cut", [1, 4])
def test_examples_do_not_depend_on_which_latents_are_computed_together(cut: int) -> None:
    acts, tokens = drawn()
    whole = chosen(acts, tokens)
    for lo in range(0, LATENTS, cut):
        rows: Rows = brute.rows(acts[:, lo : lo + cut])
        for ours, expected in zip(choose(rows, lo, tokens, CFG), whole[lo : lo + cut], strict=True):
            for name in ("interval", "context", "peak", "offsets", "position", "act"):
                assert np.array_equal(getattr(ours, name), getattr(expected, name))


def test_no_random_draws_are_made_where_none_are_asked_for() -> None:
    acts, tokens = drawn()
    e = chosen(acts, tokens, replace(CFG, random=0))[0]
    assert of_kind(e, RANDOM) == []
    assert len(of_kind(e, 1)) == 5


def test_strongest_tokens_are_distinct_and_in_order() -> None:
    acts = np.zeros((4, CTX_LEN, 1), np.float32)
    acts[:, 5, 0] = 1, 4, 3, 2
    tokens = np.arange(4 * CTX_LEN, dtype=np.uint32).reshape(4, CTX_LEN)
    tokens[:, 5] = 9, 7, 7, 8
    assert list(strongest_tokens(chosen(acts.reshape(-1, 1), tokens), tokens)) == [[7, 8, 9]]
