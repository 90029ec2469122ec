"""Margins to firing against their definition on dense pre-activations, for every architecture and any cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sae_backend.core.encode import BlockEncoder
from sae_backend.core.margins import Closest, Margins, least_acts
from sae_backend.core.sae import SELECT, SparseAutoencoder
from tests.core import brute
from tests.core.small import D_MODEL, small_sae

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer norm": {"input_norm": "layer_norm", "subtract_b_dec": True},
    "scaled, gated linear": {"input_scale": 0.7, "output_scale": 1.3, "glu": True},
}
KINDS = [*((name, {}) for name in sorted(SELECT)), ("topk", {"rank_by_decoder_norm": True}), ("topk", {"k": 60})]


def hidden(n: int) -> torch.Tensor:
    return 3 * torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(7))


def found(
    sae: SparseAutoencoder, x: torch.Tensor, rows: torch.Tensor, contexts: list[int], dtype: torch.dtype = torch.float32
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Largest margin of each latent in each of some contexts of the rows, canonical, and where."""
    margins, firings = Margins(sae), BlockEncoder(sae, dtype)(x, rows)
    assert firings.watched is not None
    scale = None if firings.scale is None else firings.scale[rows]
    closest = margins.closest(firings.watched, firings.of(rows, sae), scale, contexts)
    return [(margin * margins.gain(), where) for margin, where in closest]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("architecture", "more"), KINDS, ids=[f"{a} {m}" for a, m in KINDS])
def test_the_margin_is_what_was_missing_or_to_spare(
    architecture: str, more: dict[str, Any], options: dict[str, Any]
) -> None:
    sae, x = small_sae(architecture, 70, **more, **options), hidden(90)
    rows, contexts = torch.arange(20, 80), [25, 35]
    expected, first = brute.margins(sae, x.numpy())[rows.numpy()], 0
    for n, (margin, where) in zip(contexts, found(sae, x, rows, contexts), strict=True):
        own = expected[first : first + n]
        assert np.allclose(margin, own.max(0), rtol=1e-4, atol=1e-4)
        assert np.allclose(own[where, np.arange(70)], own.max(0), rtol=1e-4, atol=1e-4)
        first += n


@pytest.mark.parametrize("architecture", sorted(SELECT))
def test_a_margin_is_above_nothing_exactly_where_it_fires(architecture: str) -> None:
    sae, x = small_sae(architecture, 70), hidden(40)
    for token, (margin, _) in enumerate(found(sae, x, torch.arange(40), [1] * 40)):
        fires = sae.encode_dense(x)[token].numpy() > 0
        above = margin >= 0 if architecture in ("topk", "groupmax") else margin > 0  # what wins is itself the cut
        assert np.array_equal(above, fires)


def test_a_latent_that_misses_by_a_known_amount_says_so() -> None:
    sae = small_sae("topk", 70, k=5)
    x = hidden(30)
    pre = torch.addmm(sae.b_enc, x, sae.W_enc)
    sae.W_enc[:, 3] = 0
    kth = torch.cat([pre[:, :3], pre[:, 4:]], 1).topk(5, dim=1).values[:, -1]
    sae.b_enc[3] = kth.min() - 0.75  # its pre-activation is the same at every token
    [(margin, where)] = found(sae, x, torch.arange(30), [30])
    assert margin[3] == pytest.approx(-0.75 * sae.W_dec[3].norm().item(), rel=1e-4)
    assert where[3] == kth.argmin()


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "groupmax"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_loop_and_torch_alone_agree_to_the_bit(
    architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_backend.core.margins._ON_DEVICE", 64 * 30)  # three parts
    sae = small_sae(architecture, 70)
    firings = BlockEncoder(sae, dtype)(hidden(64), torch.arange(64))
    assert firings.watched is not None
    margins = Margins(sae)
    ours = list(margins.closest(firings.watched, firings.of(torch.arange(64), sae), None, [64]))
    margins._on_host = margins.on_device  # type: ignore[method-assign]
    theirs = list(margins.closest(firings.watched, firings.of(torch.arange(64), sae), None, [64]))
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert np.array_equal(a, b)


def test_watching_tokens_changes_nothing_that_fires() -> None:
    for architecture in sorted(SELECT):
        encoder = BlockEncoder(small_sae(architecture, 70))
        plain, watched = encoder(hidden(70)), encoder(hidden(70), torch.tensor([0, 3, 69]))
        assert watched.watched is not None and watched.watched.shape == (3, 70)
        assert torch.equal(plain.act, watched.act) and torch.equal(plain.latent, watched.latent)


def test_the_closest_are_kept_in_order_and_of_equal_ones_the_earlier() -> None:
    g = np.random.default_rng(0)
    margin = g.integers(-6, 2, (12, 9)).astype(np.float32)  # of contexts and latents; many are equal
    closest = Closest(9, 5)
    for token, each in enumerate(margin):
        closest.add(each, np.full(9, token, np.uint32))
    order = np.argsort(-margin, axis=0, kind="stable")[:5].T
    assert np.array_equal(closest.token, order)
    assert np.array_equal(closest.margin, np.take_along_axis(margin.T, order, 1))


def test_nothing_fires_below_its_threshold() -> None:
    for architecture in ("jumprelu", "batchtopk", "gated"):
        sae = small_sae(architecture, 70)
        least = least_acts(sae)
        assert least is not None
        acts = brute.canonical(sae, hidden(400).numpy())
        lowest = np.where(acts > 0, acts, np.inf).min(0)
        assert (lowest >= least.numpy() * (1 - 1e-5)).all()
        assert (lowest - least.numpy())[np.isfinite(lowest)].min() < 0.05
    assert least_acts(small_sae("standard")) is None


def test_a_latent_without_a_direction_has_no_margin() -> None:
    sae = small_sae("standard")
    sae = replace(sae, W_dec=sae.W_dec.clone())
    sae.W_dec[4] = 0
    assert np.flatnonzero(np.isnan(Margins(sae).gain())).tolist() == [4]
