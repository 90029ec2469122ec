"""What fires together, against sets of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from sae_backend.core import cofiring
from sae_backend.core.cofiring import Cofiring
from sae_backend.core.results import CofiringByLatent, NeighboursByLatent
from sae_backend.packing import Neighbours

D_SAE, TOKENS = 40, 300


def fired() -> np.ndarray:
    """[tokens latents]: 7 and 21 on the same tokens, 3 and 5 never together, 9 not at all, the others at random."""
    g = np.random.default_rng(0)
    fires = g.random((TOKENS, D_SAE)) < g.choice([0.02, 0.1, 0.5], D_SAE)
    fires[:, 21] = fires[:, 7]
    fires[:, 5] &= ~fires[:, 3]
    fires[:, 9] = False
    return fires


def beside(lo: int, hi: int) -> NeighboursByLatent:
    """Neighbours of latents: the one before and 5, and opposite 21; the first has only one near it."""
    return NeighboursByLatent.of([
        Neighbours(*map(np.array, ([i - 1, 5], [0.9, 0.5], [21], [-0.5]) if i else ([5], [0.5], [21], [-0.5])))
        for i in range(lo, hi)
    ])  # fmt: skip


def counted(fires: np.ndarray, cut: int = D_SAE) -> list[CofiringByLatent]:
    sample = Cofiring(fires.sum(1), np.nonzero(fires)[1].astype(np.uint32), D_SAE)
    return [sample.of(lo, min(lo + cut, D_SAE), beside(lo, min(lo + cut, D_SAE))) for lo in range(0, D_SAE, cut)]


@pytest.mark.parametrize("cut", [D_SAE, 7])
def test_jaccard_indices_are_those_of_the_sets(cut: int) -> None:
    fires = fired()
    sets = [set(np.flatnonzero(column).tolist()) for column in fires.T]
    for i, t in enumerate(x for piece in counted(fires, cut) for x in piece):
        indices = {j: len(sets[i] & s) / len(sets[i] | s) for j, s in enumerate(sets) if j != i and sets[i] & s}
        expected = sorted(indices, key=lambda j: (-indices[j], j))[: cofiring.N_TOGETHER]
        assert t.latent.tolist() == expected
        assert [t.jaccard(*n) for n in zip(t.both, t.firings, strict=True)] == [indices[j] for j in expected]
        assert (t.tokens, t.own) == (TOKENS, len(sets[i]))
        near = [i - 1, 5] if i else [5]
        assert t.nearest.tolist() == [len(sets[i] & sets[j]) for j in near]
        assert t.nearest_firings.tolist() == [len(sets[j]) for j in near]
        assert (t.opposing.tolist(), t.opposing_firings.tolist()) == ([len(sets[i] & sets[21])], [len(sets[21])])


def test_latents_that_always_and_never_fire_together_are_found() -> None:
    [all_of] = counted(fired())
    same, apart, silent = all_of[7], all_of[3], all_of[9]
    assert (same.latent[0], same.jaccard(int(same.both[0]), int(same.firings[0]))) == (21, 1.0)
    assert 5 not in apart.latent
    assert (apart.nearest[1], apart.jaccard(0, int(apart.nearest_firings[1]))) == (0, 0.0)
    assert (silent.own, silent.latent.size, silent.jaccard(0, 5)) == (0, 0, None)


def test_a_sample_of_many_pairs_is_thinned_to_its_bound() -> None:
    l0 = np.full(1000, 100)
    assert cofiring._stride(l0, 10**6) == 1
    assert cofiring._stride(l0, 10**5) == 4
    assert cofiring._stride(np.full(65_536, 300), 10**9) == -(-65_536 * 90_000 // cofiring.MOST_PAIRS)
    assert cofiring._stride(np.zeros(0, np.int64), 0) == 1
