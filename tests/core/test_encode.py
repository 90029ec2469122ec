"""The block encoder against the SAE's own encode and against the dense definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sae_backend.core import encode
from sae_backend.core.encode import BlockEncoder, Firings
from sae_backend.core.sae import SELECT, SparseAutoencoder
from tests.core import brute
from tests.core.small import D_MODEL, small_sae

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normalised": {"input_norm": "layer_norm", "subtract_b_dec": True},
    "centred": {"input_norm": "centred", "subtract_b_dec": True},
    "gated linear": {"glu": True},
    "scaled": {"input_norm": "constant_norm", "input_scale": 0.7, "output_scale": 1.3},
}


def hidden(n: int) -> torch.Tensor:
    return 3 * torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(7))


def dense(found: Firings, d_sae: int) -> np.ndarray:
    out = np.zeros((len(found.indptr) - 1, d_sae), np.float32)
    out[found.rows().numpy(), found.latent.numpy()] = found.act.numpy()
    return out


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("architecture", sorted(SELECT))
def test_every_architecture_fires_as_defined(architecture: str, options: dict[str, Any]) -> None:
    sae, x = small_sae(architecture, 150, **options), hidden(100)
    ours, sure = dense(BlockEncoder(sae)(x), 150), ~brute.doubtful(sae, x.numpy(), 1e-5)
    for expected in (sae.encode_dense(x).numpy(), brute.own_scale(sae, x.numpy())):
        assert np.array_equal(sure & (ours > 0), sure & (expected > 0))
        assert np.allclose(ours[sure], expected[sure], rtol=1e-5, atol=1e-5)
    assert (ours > 0).any() and (~sure).mean() < 0.01


@pytest.mark.parametrize("rank_by_decoder_norm", [False, True])
@pytest.mark.parametrize("k", [1, 5, 70])
def test_topk_keeps_at_most_k_and_only_positive_ones(k: int, rank_by_decoder_norm: bool) -> None:
    sae, x = small_sae(k=k, rank_by_decoder_norm=rank_by_decoder_norm), hidden(40)
    ours, expected = dense(BlockEncoder(sae)(x), 70), brute.own_scale(sae, x.numpy())
    assert np.array_equal(ours > 0, expected > 0)
    assert (ours > 0).sum(1).max() <= k


@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
@pytest.mark.parametrize("cut", [1, 3, 8, 63, 65])
def test_a_tokens_activations_are_the_same_bits_whatever_is_encoded_with_it(architecture: str, cut: int) -> None:
    sae, x = small_sae(architecture, 150), hidden(130)
    encoder = BlockEncoder(sae)
    whole = dense(encoder(x), 150)
    assert np.array_equal(np.concatenate([dense(encoder(part), 150) for part in x.split(cut)]), whole)


def test_blocks_of_rows_and_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = small_sae(d_sae=500, k=20), hidden(200)
    whole = dense(BlockEncoder(sae)(x), 500)
    monkeypatch.setattr(encode, "_COLUMNS", 128)
    monkeypatch.setattr(encode, "ROWS", 64)
    assert np.array_equal(dense(BlockEncoder(sae)(x), 500), whole)


@pytest.mark.parametrize("architecture", sorted(SELECT))
def test_no_tokens_give_no_firings(architecture: str) -> None:
    found = BlockEncoder(small_sae(architecture))(torch.zeros(0, D_MODEL))
    assert found.indptr.tolist() == [0]
    assert found.latent.numel() == found.act.numel() == 0


def test_bfloat16_differs_from_float32_by_its_rounding_only() -> None:
    sae, x = small_sae(d_sae=300, k=10), hidden(100)
    exact, coarse = (dense(BlockEncoder(sae, dtype)(x), 300) for dtype in (torch.float32, torch.bfloat16))
    both = (exact > 0) & (coarse > 0)
    assert both.sum() > 0.95 * (exact > 0).sum()
    assert np.abs(exact - coarse)[both].max() < 0.02 * exact.max()


def test_bfloat16_selects_exactly_among_its_own_pre_activations() -> None:
    sae: SparseAutoencoder = small_sae(d_sae=300, k=10)
    x = hidden(64)
    W, b = sae.W_enc.bfloat16(), sae.b_enc.bfloat16()
    pre_acts = torch.addmm(b, x.bfloat16(), W).float().numpy()
    assert np.array_equal(dense(BlockEncoder(sae, torch.bfloat16)(x), 300), brute.top_k(pre_acts, 10))
