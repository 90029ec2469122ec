"""Basis kurtosis and its control on hidden states whose basis is, or is not, privileged; and what a dtype changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_backend.core import fidelity, precision
from sae_backend.core.config import RunConfig
from sae_backend.core.fidelity import Sums, rotation
from sae_backend.core.language_model import load
from tests.core.small import save_lm, small_sae

D = 128


def figures(x: torch.Tensor) -> dict[str, float]:
    sums = Sums()
    for part in x.split(17):
        sums.add_basis(part)
    found = fidelity.figures(sums)["basis_kurtosis"]
    assert found is not None and found["tokens"] == len(x)
    return found


def brute(x: np.ndarray) -> float:
    centred = x - x.mean(1, keepdims=True)
    return float((np.mean(centred**4, 1) / np.mean(centred**2, 1) ** 2).mean())


def test_the_rotation_is_orthogonal_and_always_the_same() -> None:
    q = rotation(D, torch.device("cpu"))
    assert torch.allclose(q @ q.T, torch.eye(D), atol=1e-5)
    rotation.cache_clear()
    assert torch.equal(rotation(D, torch.device("cpu")), q)


@pytest.mark.parametrize("privileged", [False, True])
def test_a_privileged_basis_shows_and_its_rotation_does_not(privileged: bool) -> None:
    x = torch.randn(500, D, generator=torch.Generator().manual_seed(0)) + 2
    if privileged:
        x[:, 3] *= 20
    ours = figures(x)
    assert ours["plain"] == pytest.approx(brute(x.double().numpy()), rel=1e-5)
    rotated = (x @ rotation(D, x.device)).double().numpy()
    assert ours["rotated"] == pytest.approx(brute(rotated), rel=1e-5)
    assert (ours["plain"] > 20) == privileged
    assert 2.5 < ours["rotated"] < 3.5


def test_without_hidden_states_there_is_none() -> None:
    assert fidelity.figures(Sums())["basis_kurtosis"] is None


def test_what_bfloat16_changes_is_measured_against_float32(tmp_path: Path) -> None:
    folder = str(save_lm(tmp_path))
    exact, coarse = load(folder), load(folder, torch.bfloat16)
    sae, tokens = small_sae(d_sae=200), np.random.default_rng(0).integers(0, 256, (8, 32)).astype(np.uint32)
    cfg = RunConfig(dtype="bfloat16", batch_contexts=3)
    found = precision.difference(sae, coarse, exact, cfg, {0}, tokens)
    assert found["tokens"] == int((tokens != 0).sum())
    assert 0.7 < found["firings_kept"] < 1 and 0 < found["act"] < 0.05
    assert all(value > 0 for pair in (found["l0"], found["fvu"]) for value in pair)
    assert found["fvu"][0] != found["fvu"][1]
    same = precision.difference(sae, exact, exact, RunConfig(), {0}, tokens)
    assert (same["firings_kept"], same["act"]) == (1.0, 0.0)
