"""Sums that add up over shards, and the figures made of them."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from sae_backend.core import fidelity
from sae_backend.core.fidelity import Sums
from tests.core import brute

G = torch.Generator().manual_seed(0)
X = torch.randn(300, 12, generator=G) * torch.linspace(0.1, 5, 12) + 3
RECON = X + 0.3 * torch.randn(300, 12, generator=G)
L0 = np.random.default_rng(0).integers(0, 9, 300)


def summed(lo: int, hi: int) -> Sums:
    sums = Sums()
    sums.add_l0(L0[lo:hi])
    sums.add_reconstruction(X[lo:hi], RECON[lo:hi])
    return sums


def test_errors_follow_their_definitions() -> None:
    ours = fidelity.figures(summed(0, 300))
    expected = brute.fidelity(X.double().numpy(), RECON.double().numpy())
    assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert ours["fidelity_tokens"] == 300


@pytest.mark.parametrize("beyond", [float("inf"), float("nan"), 3e38])
def test_a_reconstruction_that_is_not_finite_leaves_figures_that_a_database_takes(beyond: float) -> None:
    sums = Sums(ce_tokens=1, ce_spliced=beyond * 10)
    sums.add_reconstruction(X, torch.full_like(X, beyond))
    assert json.loads(json.dumps(fidelity.figures(sums), allow_nan=False))["fidelity_tokens"] == 300


def test_l0_is_the_mean_of_its_distribution() -> None:
    ours = fidelity.figures(summed(0, 300))
    assert ours["l0"] == pytest.approx(L0.mean())
    assert ours["l0_histogram"] == [[v, int(np.equal(L0, v).sum())] for v in range(9)]


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("order", [1, -1])
def test_parts_stored_as_json_add_up_to_the_whole_in_any_order(size: int, order: int) -> None:
    parts = [json.loads(json.dumps(asdict(summed(lo, min(lo + size, 300))))) for lo in range(0, 300, size)]
    ours, whole = (fidelity.figures(s) for s in (fidelity.merged(parts[::order]), summed(0, 300)))
    for name in ("mse", "fvu", "normalised_mse", "l0"):
        assert ours[name] == pytest.approx(whole[name], rel=1e-12)
    assert ours["l0_histogram"] == whole["l0_histogram"]


def test_a_part_without_decoded_tokens_changes_no_error() -> None:
    empty = Sums()
    empty.add_l0(L0[:5])
    for parts in ([summed(0, 300), empty], [empty, summed(0, 300)]):
        ours = fidelity.figures(fidelity.merged([asdict(p) for p in parts]))
        assert ours["fvu"] == fidelity.figures(summed(0, 300))["fvu"]
        assert ours["tokens"] == 305


def test_a_perfect_reconstruction_has_no_error_and_the_mean_has_all_variance_unexplained() -> None:
    perfect, mean = Sums(), Sums()
    perfect.add_reconstruction(X, X)
    mean.add_reconstruction(X, X.mean(0).expand_as(X))
    assert fidelity.figures(perfect)["fvu"] == 0
    assert fidelity.figures(mean)["fvu"] == pytest.approx(1, rel=1e-6)


def test_what_is_undefined_is_none() -> None:
    ours = fidelity.figures(Sums())
    assert [ours[name] for name in ("l0", "mse", "fvu", "normalised_mse", "ce")] == [None] * 5
    constant = Sums()
    constant.add_reconstruction(torch.ones(4, 3), torch.zeros(4, 3))
    assert fidelity.figures(constant)["fvu"] is None
    for seed in range(20):  # one hidden state, or the same three times: no variance, whatever rounding leaves of it
        for n in (1, 3):
            x = 3 * torch.randn(1, 32, generator=torch.Generator().manual_seed(seed)).expand(n, 32) + 1
            same = Sums()
            same.add_reconstruction(x, torch.zeros_like(x))
            assert fidelity.figures(same)["fvu"] is None
            assert fidelity.figures(same)["normalised_mse"] == pytest.approx(1)
    assert fidelity.figures(Sums(ce_tokens=4, ce_clean=8.0, ce_zero=8.0))["ce"]["recovered"] is None


def test_a_hidden_state_of_zeros_has_no_relative_error() -> None:
    sums = Sums()
    sums.add_reconstruction(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    ours = fidelity.figures(sums)
    assert (ours["mse"], ours["normalised_mse"], ours["fidelity_tokens"]) == (1.0, 0.25, 2)
    zeros = Sums()
    zeros.add_reconstruction(torch.zeros(3, 2), torch.ones(3, 2))
    assert fidelity.figures(zeros)["normalised_mse"] is None


def test_cross_entropy_recovered_is_the_share_of_what_ablation_loses() -> None:
    ce = fidelity.figures(Sums(ce_tokens=10, ce_clean=20.0, ce_spliced=25.0, ce_zero=60.0))["ce"]
    assert ce == {"clean": 2.0, "spliced": 2.5, "zero": 6.0, "recovered": 0.875, "tokens": 10}
