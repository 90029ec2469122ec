"""The basis kurtosis of every layer: the hidden states that capture gives, privileged where that was planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sae_backend.core import layers
from sae_backend.core.language_model import LM, load
from tests.core.small import save_lm
from tests.core.test_basis import brute

D = 128


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load(str(save_lm(tmp_path_factory.mktemp("lm"), n_layer=3, n_embd=D)))


def tokens(n: int = 4) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(1, 256, (n, 32)).astype(np.uint32)
    drawn[:, 0] = 0
    return drawn


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_one_forward_gives_what_capture_gives_at_every_hook_point(tmp_path: Path, architecture: str) -> None:
    small = load(str(save_lm(tmp_path, architecture)))
    names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"]
    ids = torch.from_numpy(tokens().astype(np.int64))
    for name, hidden in zip(names, small.captures(ids, names), strict=True):
        assert torch.equal(hidden, small.capture(ids, name)), name


def test_every_layer_has_the_kurtosis_of_its_own_hidden_states(lm: LM) -> None:
    found, ids = layers.basis_by_layer(lm, tokens(), {0}), torch.from_numpy(tokens().astype(np.int64))
    assert found["tokens"] == int((tokens() != 0).sum())
    expected = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(3))]
    assert [of["hook_name"] for of in found["layers"]] == expected
    for of in found["layers"]:
        hidden = lm.capture(ids, of["hook_name"])[ids != 0].double().numpy()
        assert of["plain"] == pytest.approx(brute(hidden), rel=1e-4)


def test_a_privileged_coordinate_shows_from_where_it_is_written_and_not_under_rotation(lm: LM) -> None:
    bias = lm.hf.transformer.h[1].mlp.c_proj.bias
    kept = bias.clone()
    try:
        bias[7] += 1e4
        found = layers.basis_by_layer(lm, tokens(), {0})["layers"]
    finally:
        bias.copy_(kept)
    # one coordinate alone: m4/m2² = ((d-1)^4 + d-1)/d / (((d-1)^2 + d-1)/d)^2 = d - 2 + 1/(d-1)
    alone = D - 2 + 1 / (D - 1)
    assert [of["plain"] > 100 for of in found] == [False, False, True, True]
    assert found[2]["plain"] == pytest.approx(alone, rel=1e-3)
    assert all(of["rotated"] < 4.5 for of in found)


def test_layers_are_the_same_computed_again(lm: LM) -> None:
    assert layers.basis_by_layer(lm, tokens(), {0}) == layers.basis_by_layer(lm, tokens(), {0})
