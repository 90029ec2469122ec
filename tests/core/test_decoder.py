"""What weights alone say, against NumPy on all pairs."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from sae_backend.core import decoder, neighbours
from sae_backend.core.config import SaeConfig
from sae_backend.core.decoder import Decoder, DecoderFacts
from sae_backend.core.language_model import Unembedding
from sae_backend.core.sae import SparseAutoencoder
from tests.core.small import D_MODEL, small_sae


def sae_of(W_dec: np.ndarray, W_enc: np.ndarray | None = None) -> SparseAutoencoder:
    n, d = W_dec.shape
    rows = torch.from_numpy(W_dec.astype(np.float32))
    encoder = rows.T.contiguous() if W_enc is None else torch.from_numpy(W_enc.astype(np.float32))
    return SparseAutoencoder(SaeConfig("standard", d, n, d), encoder, torch.arange(n).float(), rows, torch.zeros(d))


def facts(sae: SparseAutoencoder, live: list[bool] | None = None, W_U: torch.Tensor | None = None) -> DecoderFacts:
    n = sae.cfg.d_sae
    alive = torch.ones(n, dtype=torch.bool) if live is None else torch.tensor(live)
    whole = Decoder(sae, None if W_U is None else Unembedding(W_U))
    return whole.facts(0, n, alive, whole.directions.products(alive))


def cosines(sae: SparseAutoencoder) -> np.ndarray:
    d = sae.W_dec.numpy().astype(np.float64)
    unit = d / np.linalg.norm(d, axis=1, keepdims=True)
    return unit @ unit.T


def test_neighbours_are_the_ten_largest_and_smallest_cosines_and_never_the_latent_itself() -> None:
    sae = small_sae(d_sae=200)
    cos = cosines(sae)
    ours = facts(sae)
    for i, n in enumerate(ours.neighbours):
        others = [j for j in np.argsort(-cos[i], kind="stable").tolist() if j != i]
        assert n.nearest.tolist() == others[:10]
        assert n.opposing.tolist() == others[::-1][:10]
        assert np.allclose(n.nearest_cos, cos[i, n.nearest], atol=1e-6)
        assert np.allclose(n.opposing_cos, cos[i, n.opposing], atol=1e-6)
    assert np.allclose(ours.stats.nearest_cos, np.where(np.eye(200), -2, cos).max(1), atol=1e-6)
    assert np.allclose(ours.stats.opposing_cos, np.where(np.eye(200), 2, cos).min(1), atol=1e-6)


@pytest.mark.parametrize("columns", [7, 64, 200])
@pytest.mark.parametrize("size", [7, 64])
def test_blocks_of_columns_and_shards_of_latents_change_nothing(
    monkeypatch: pytest.MonkeyPatch, columns: int, size: int
) -> None:
    sae, W_U = small_sae(d_sae=150), torch.randn(D_MODEL, 90, generator=torch.Generator().manual_seed(0))
    whole, live = facts(sae, W_U=W_U), torch.ones(150, dtype=torch.bool)
    monkeypatch.setattr(neighbours, "_COLUMNS", columns)
    monkeypatch.setattr(decoder, "_ROWS", columns)
    parts = Decoder(sae, Unembedding(W_U))
    for lo in range(0, 150, size):
        hi = min(lo + size, 150)
        ours = parts.facts(lo, hi, live, parts.directions.products(live))
        for a, b in zip(ours.neighbours, whole.neighbours[lo:hi], strict=True):
            assert np.array_equal(a.nearest, b.nearest)
            assert np.array_equal(a.opposing, b.opposing)
        for x, y in zip(astuple(ours.stats), astuple(whole.stats), strict=True):
            assert np.allclose(x, y[lo:hi], rtol=1e-5, atol=1e-6, equal_nan=True)
        assert [x.promoted.tolist() for x in ours.logits] == [x.promoted.tolist() for x in whole.logits[lo:hi]]


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_facts_have_the_same_bits_in_shards_of_any_size(size: int) -> None:
    g = np.random.default_rng(0)
    sae = sae_of(g.standard_normal((400, 256)), g.standard_normal((256, 400)))
    W_U = torch.randn(256, 500, generator=torch.Generator().manual_seed(0))
    parts, live = Decoder(sae, Unembedding(W_U)), torch.arange(400) % 7 > 0
    products = parts.directions.products(live)

    def values(step: int) -> list[np.ndarray]:
        shards = [parts.facts(lo, min(lo + step, 400), live, products) for lo in range(0, 400, step)]
        fields = [{**vars(s.stats), **vars(s.neighbours), **vars(s.logits)} for s in shards]
        return [np.concatenate([of[name] for of in fields]) for name in fields[0]]

    for ours, whole in zip(values(size), values(400), strict=True):
        assert np.array_equal(ours, whole, equal_nan=ours.dtype.kind == "f")


@pytest.mark.parametrize("columns", [3, 16, 1000])
def test_equal_cosines_are_listed_by_index(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(neighbours, "_COLUMNS", columns)
    basis = np.eye(4)[np.arange(40) % 4] * np.where(np.arange(40) % 8 < 4, 1, -1)[:, None]  # cosines 1, 0 and -1
    sae = sae_of(basis)
    for i, n in enumerate(facts(sae).neighbours):
        others = np.delete(np.arange(40), i)
        cos = basis[others] @ basis[i]
        assert n.nearest.tolist() == others[np.argsort(-cos, kind="stable")][:10].tolist()
        assert n.opposing.tolist() == others[np.argsort(cos, kind="stable")][:10].tolist()


@pytest.mark.parametrize("d_sae", [1, 2, 5, 10, 11])
def test_a_small_sae_lists_all_its_other_latents(d_sae: int) -> None:
    ours = facts(small_sae("standard", d_sae))
    for i, n in enumerate(ours.neighbours):
        assert len(n.nearest) == len(n.opposing) == min(10, d_sae - 1)
        assert i not in n.nearest
        assert i not in n.opposing
    assert np.isnan(ours.stats.nearest_cos).all() == (d_sae == 1)


def test_dimensionality_is_one_for_orthogonal_and_half_for_antipodal_latents() -> None:
    assert facts(sae_of(5 * np.eye(6))).stats.dimensionality == pytest.approx([1] * 6)
    pairs = np.concatenate([np.eye(3), -2 * np.eye(3)])
    assert facts(sae_of(pairs)).stats.dimensionality == pytest.approx([0.5] * 6)


def test_dimensionality_of_a_triangle_is_two_thirds() -> None:
    angles = 2 * np.pi * np.arange(3) / 3
    triangle = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert facts(sae_of(triangle)).stats.dimensionality == pytest.approx([2 / 3] * 3)


def test_dimensionality_counts_live_latents_and_the_latent_itself() -> None:
    pairs = np.concatenate([np.eye(3), -np.eye(3)])
    ours = facts(sae_of(pairs), [True, True, True, False, False, False]).stats.dimensionality
    assert ours == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5])


def test_dimensionality_is_one_over_the_sum_of_squared_cosines() -> None:
    sae = small_sae(d_sae=120)
    live = (np.arange(120) % 3 > 0).tolist()
    squares = cosines(sae) ** 2
    expected = 1 / (squares[:, live].sum(1) + np.where(live, 0, 1))
    assert facts(sae, live).stats.dimensionality == pytest.approx(expected, rel=1e-5)


def test_a_latent_without_a_direction_has_no_geometry_and_is_nobodys_neighbour_in_disguise() -> None:
    rows = np.random.default_rng(0).standard_normal((30, 8))
    rows[4] = 0
    ours = facts(sae_of(rows), W_U=torch.randn(8, 50, generator=torch.Generator().manual_seed(0)))
    stats = ours.stats
    undefined = (stats.nearest_cos, stats.opposing_cos, stats.dimensionality, stats.encoder_decoder_cos)
    shapes = (stats.logit_std, stats.logit_skewness, stats.logit_kurtosis)
    assert np.isnan([x[4] for x in (*undefined, *shapes)]).all()
    assert np.isfinite(np.delete(np.stack([*undefined, *shapes]), 4, axis=1)).all()
    assert stats.decoder_norm[4] == 0
    assert len(ours.neighbours[4].nearest) == len(ours.neighbours[4].opposing) == 0
    assert [len(x.promoted) for x in ours.logits] == [10] * 4 + [0] + [10] * 25
    assert all(4 not in (*n.nearest, *n.opposing) for n in ours.neighbours)


def test_norms_biases_and_encoder_cosines_are_the_weights_own() -> None:
    sae = small_sae(output_scale=2.0)
    ours, e, d = facts(sae).stats, sae.W_enc.T.numpy(), sae.W_dec.numpy()
    cos = (e * d).sum(1) / np.linalg.norm(e, axis=1) / np.linalg.norm(d, axis=1)
    assert ours.decoder_norm == pytest.approx(2 * np.linalg.norm(d, axis=1), rel=1e-6)
    assert ours.b_enc == pytest.approx(sae.b_enc.numpy())
    assert ours.encoder_decoder_cos == pytest.approx(cos, abs=1e-6)
    assert facts(sae_of(d)).stats.encoder_decoder_cos == pytest.approx(np.ones(70))


def test_a_transcoder_has_no_encoder_decoder_cosine() -> None:
    sae = small_sae(d_in=16, d_out=24, hook_name_out="blocks.0.hook_mlp_out")
    assert np.isnan(facts(sae).stats.encoder_decoder_cos).all()


def test_logit_effects_are_the_unit_direction_through_w_u_centred_over_the_vocabulary() -> None:
    sae, W_U = small_sae(), torch.randn(D_MODEL, 300, generator=torch.Generator().manual_seed(3)) + 1
    ours = facts(sae, W_U=W_U)
    d = sae.W_dec.numpy().astype(np.float64)
    effect = d / np.linalg.norm(d, axis=1, keepdims=True) @ W_U.numpy()
    effect -= effect.mean(1, keepdims=True)
    for x, e in zip(ours.logits, effect, strict=True):
        assert x.promoted.tolist() == np.argsort(-e)[:10].tolist()
        assert x.suppressed.tolist() == np.argsort(e)[:10].tolist()
        assert x.promoted_effect == pytest.approx(e[x.promoted], abs=1e-4)
        assert x.suppressed_effect == pytest.approx(e[x.suppressed], abs=1e-4)
        assert (x.low, x.high) == pytest.approx((e.min(), e.max()), abs=1e-4)
        assert x.counts.sum() == 300
        cumulative = np.searchsorted(np.sort(e), np.linspace(x.low, x.high, len(x.counts) + 1)[1:-1])
        assert np.abs(np.cumsum(x.counts)[:-1] - cumulative).max() <= 1  # an effect on an edge may round either way
    m2, m3, m4 = ((effect**p).mean(1) for p in (2, 3, 4))
    assert ours.stats.logit_std == pytest.approx(np.sqrt(m2), rel=1e-4)
    assert ours.stats.logit_skewness == pytest.approx(m3 / m2**1.5, abs=1e-4)
    assert ours.stats.logit_kurtosis == pytest.approx(m4 / m2**2, rel=1e-4)


def test_equal_effects_are_listed_by_token() -> None:
    W_U = torch.randint(0, 3, (4, 60), generator=torch.Generator().manual_seed(0)).float()
    ours, effect = facts(sae_of(np.eye(4)), W_U=W_U).logits, W_U.numpy()
    for i, x in enumerate(ours):
        assert x.promoted.tolist() == np.argsort(-effect[i], kind="stable")[:10].tolist()
        assert x.suppressed.tolist() == np.argsort(effect[i], kind="stable")[:10].tolist()


def test_effects_have_the_precision_of_float32() -> None:
    g = torch.Generator().manual_seed(5)
    rows, W_U = torch.randn(300, 700, generator=g), torch.randn(700, 90, generator=g)
    sae = sae_of(rows.numpy())
    exact = (rows.double() / rows.double().norm(dim=1, keepdim=True) @ W_U.double()).numpy()
    exact -= exact.mean(1, keepdims=True)
    for x, e in zip(facts(sae, W_U=W_U).logits, exact, strict=True):
        assert np.abs(x.promoted_effect - e[x.promoted]).max() < 1e-5  # of effects about 2


def test_a_vocabulary_of_fewer_tokens_than_are_listed_is_listed_whole() -> None:
    ours = facts(small_sae(), W_U=torch.randn(D_MODEL, 4))
    assert all(len(x.promoted) == len(x.suppressed) == 4 for x in ours.logits)


@pytest.mark.parametrize("W_U", [None, torch.ones(D_MODEL + 1, 5)], ids=["none", "another width"])
def test_without_a_fitting_unembedding_there_are_no_logit_effects(W_U: torch.Tensor | None) -> None:
    ours = facts(small_sae(), W_U=W_U)
    assert all(len(x.promoted) == len(x.suppressed) == len(x.counts) == 0 for x in ours.logits)
    assert np.isnan([ours.stats.logit_std, ours.stats.logit_skewness, ours.stats.logit_kurtosis]).all()
