"""Reconstruction at other k than the SAE's own, against its definition and against a dictionary where it is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sae_backend.core import k_curve
from sae_backend.core.config import RunConfig, SaeConfig
from sae_backend.core.encode import BlockEncoder
from sae_backend.core.language_model import LM
from sae_backend.core.run import ContextPass
from sae_backend.core.sae import SparseAutoencoder
from tests.core import brute
from tests.core.small import HOOK, small_lm, small_sae

CONTEXTS, CTX_LEN = 12, 32
SEPARATOR = 0
CFG = RunConfig(k_contexts=4)
SAES: dict[str, dict[str, Any]] = {
    "topk, layer norm": {"input_norm": "layer_norm", "subtract_b_dec": True},
    "topk, by decoder norm": {"rank_by_decoder_norm": True, "output_scale": 1.5},
    "batchtopk": {"architecture": "batchtopk", "metadata": {"k": 6}},
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return small_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 40, (CONTEXTS, CTX_LEN)).astype(np.uint32)


def curve(
    sae: SparseAutoencoder, lm: LM, tokens: np.ndarray, contexts: int = CONTEXTS, batch: int = CONTEXTS, order: int = 1
) -> Any:
    """Of a run cut into shards of so many contexts, computed in batches."""
    run = ContextPass(sae, lm, replace(CFG, batch_contexts=batch), {SEPARATOR})
    sums: k_curve.Part = {}
    for lo in range(0, CONTEXTS, contexts)[::order]:
        shard = run.shard(tokens[lo : lo + contexts], lo, CONTEXTS, lambda done: None)
        sums = k_curve.added(sums, shard.sums["k_curve"])
    return k_curve.figures(sae.cfg, sums)


def strongest(sae: SparseAutoencoder, x: np.ndarray, k: int) -> np.ndarray:
    """Reconstruction of x by its k largest latents, dense."""
    pre = brute.pre_activations(sae, x)
    factor = np.linalg.norm(sae.W_dec.numpy(), axis=1) if sae.cfg.rank_by_decoder_norm else 1.0
    acts = np.where(brute.top_k(pre * factor, k) > 0, pre, 0)
    _, mean, scale = brute.normalised(sae, x)
    recon = acts @ sae.W_dec.numpy().astype(np.float64) + sae.b_dec.numpy()
    return recon * sae.cfg.output_scale * scale + mean


@pytest.mark.parametrize("options", SAES.values(), ids=SAES)
def test_every_k_reconstructs_with_the_largest_latents_of_the_sampled_contexts(
    lm: LM, tokens: np.ndarray, options: dict[str, Any]
) -> None:
    sae = small_sae(**options)
    ours = curve(sae, lm, tokens)
    own = ours["k"]
    assert own == (sae.cfg.k or 6)
    assert [k for k, *_ in ours["points"]] == sorted({1, 2, 4, 8, 16, own})
    sample = tokens[brute.evenly(CONTEXTS, CFG.k_contexts)]
    x = lm.capture(torch.from_numpy(sample.astype(np.int64)), HOOK).numpy()[sample != SEPARATOR].astype(np.float64)
    assert ours["tokens"] == len(x) < sample.size
    for k, l0, fvu, normalised_mse in ours["points"]:
        expected = brute.fidelity(x, strongest(sae, x, k))
        assert (fvu, normalised_mse) == pytest.approx((expected["fvu"], expected["normalised_mse"]), rel=1e-4)
        pre = brute.pre_activations(sae, x)
        assert l0 == pytest.approx(np.minimum((pre > 0).sum(1), k).mean(), abs=0.01)


@pytest.mark.parametrize(("contexts", "batch", "order"), [(1, 1, 1), (5, 3, 1), (3, 12, -1)])
def test_the_curve_does_not_depend_on_how_a_run_is_cut(
    lm: LM, tokens: np.ndarray, contexts: int, batch: int, order: int
) -> None:
    sae = small_sae(input_norm="layer_norm")
    whole, cut = curve(sae, lm, tokens), curve(sae, lm, tokens, contexts, batch, order)
    assert cut["tokens"] == whole["tokens"]
    for ours, expected in zip(cut["points"], whole["points"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-12)


def test_at_its_own_k_the_curve_passes_through_the_run() -> None:
    sae, x = small_sae(k=5), torch.randn(300, 32, generator=torch.Generator().manual_seed(1))
    ks = k_curve.ks(sae.cfg)
    sums = k_curve.part(sae, x, x, BlockEncoder(sae).with_k(ks[-1])(x), ks)
    error = (x - sae.decode(sae.encode(x))).double().square().sum()
    assert sums["error"][ks.index(5)] == pytest.approx(float(error), rel=1e-6)


def test_an_orthonormal_dictionary_leaves_the_squares_of_what_it_drops() -> None:
    """Hidden states of three latents each, of coefficients 3, 2 and 1, are whole from k' = 3 on."""
    d, n = 16, 400
    g = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(d, d, generator=g)).Q
    coefficients = torch.zeros(n, d)
    for row in coefficients:
        row[torch.randperm(d, generator=g)[:3]] = torch.tensor([3.0, 2.0, 1.0])
    x = coefficients @ rows
    cfg = SaeConfig("topk", d, d, d, HOOK, k=3)
    sae = SparseAutoencoder(cfg, rows.T.contiguous(), torch.full((d,), -1e-3), rows, torch.zeros(d))
    ks = k_curve.ks(cfg)
    sums = k_curve.part(sae, x, x, BlockEncoder(sae).with_k(ks[-1])(x), ks)
    ours = k_curve.figures(cfg, sums)
    assert ours is not None
    variance = float((coefficients - coefficients.mean(0)).square().sum()) / n  # of x too: rows only turn it
    left = {1: 5.0, 2: 1.0, 3: 0.0, 4: 0.0, 8: 0.0}
    assert [k for k, *_ in ours["points"]] == list(left)
    for k, l0, fvu, normalised_mse in ours["points"]:
        assert l0 == pytest.approx(min(k, 3))
        assert fvu == pytest.approx(left[k] / variance, abs=2e-3)
        assert normalised_mse == pytest.approx(left[k] / 14, abs=2e-3)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "groupmax"])
def test_what_has_no_k_has_no_curve(lm: LM, tokens: np.ndarray, architecture: str) -> None:
    assert curve(small_sae(architecture), lm, tokens) is None
