"""SparseAutoencoder on SAEs small enough to work out by hand, and its invariances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_backend.core.config import SaeConfig
from sae_backend.core.sae import SELECT, SparseAutoencoder, mean_and_std, mean_and_std_by_torch, top_k

# Three latents that read the first, the second and minus the first of two coordinates.
W_ENC = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
W_DEC = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-3.0, 4.0]])
EXTRA: dict[str, dict[str, Tensor]] = {
    "jumprelu": {"threshold": torch.tensor([0.5, 1.0, 0.0])},
    "batchtopk": {"threshold": torch.full((3,), 0.5)},
    "gated": {
        "b_gate": torch.tensor([0.0, -1.0, 0.0]),
        "r_mag": torch.tensor([0.0, 0.0, 1.0]),
        "b_mag": torch.tensor([1.0, 0.0, -1.0]),
    },
}


def small(architecture: str = "standard", **settings: Any) -> SparseAutoencoder:
    cfg = SaeConfig(architecture, 2, 3, 2, k={"topk": 2, "groupmax": 1}.get(architecture))  # type: ignore[arg-type]
    extra = EXTRA.get(architecture, {})
    return SparseAutoencoder(
        replace(cfg, **settings), W_ENC, torch.zeros(3), W_DEC, torch.tensor([0.25, 0.5]), **extra
    )


def random_sae(
    architecture: str, d_in: int = 8, d_sae: int = 24, seed: int = 0, **settings: Any
) -> SparseAutoencoder:
    noise = torch.Generator().manual_seed(seed)
    matrix = lambda *shape: torch.randn(*shape, generator=noise)  # noqa: E731
    names = EXTRA.get(architecture, {})
    cfg = SaeConfig(architecture, d_in, d_sae, d_in, k={"topk": 5, "groupmax": 6}.get(architecture))  # type: ignore[arg-type]
    tensors = [matrix(d_in, d_sae), matrix(d_sae), matrix(d_sae, d_in), matrix(d_in)]
    return SparseAutoencoder(
        replace(cfg, **settings), *tensors, **{name: matrix(d_sae).abs() for name in names}
    )


BY_HAND = [
    ("standard", [[1.0, 1.0], [-2.0, 0.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]]),
    ("topk", [[3.0, 1.0], [-2.0, -1.0]], [[3.0, 1.0, 0.0], [0.0, 0.0, 2.0]]),
    ("jumprelu", [[0.5, 1.5], [0.75, 1.0]], [[0.0, 1.5, 0.0], [0.75, 0.0, 0.0]]),
    ("batchtopk", [[0.5, 0.75], [-0.75, 0.0]], [[0.0, 0.75, 0.0], [0.0, 0.0, 0.75]]),
    ("gated", [[2.0, 1.0], [-1.0, 2.0]], [[3.0, 0.0, 0.0], [0.0, 2.0, torch.e - 1]]),
    ("groupmax", [[3.0, 1.0], [-2.0, -1.0], [0.0, -1.0]], [[3.0, 0.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]),
    ("tanh_relu", [[1.0, -1.0]], [[0.7615942, 0.0, 0.0]]),
]


@pytest.mark.parametrize(("architecture", "x", "acts"), BY_HAND)
def test_activations_are_those_worked_out_by_hand(architecture: str, x: list, acts: list) -> None:
    torch.testing.assert_close(small(architecture).encode_dense(torch.tensor(x)), torch.tensor(acts))


def test_every_architecture_is_worked_out_by_hand() -> None:
    assert {architecture for architecture, _, _ in BY_HAND} == set(SELECT)


@pytest.mark.parametrize("architecture", SELECT)
def test_encode_equals_encode_dense_sorted_by_token_and_latent(architecture: str) -> None:
    sae, x = random_sae(architecture), torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    acts = sae.encode(x)
    assert 0 < len(acts.value) < 40 * 24
    assert torch.equal(acts.dense(), sae.encode_dense(x))
    order = acts.token * 24 + acts.latent
    assert bool((order[1:] > order[:-1]).all())
    assert (acts.token.dtype, acts.latent.dtype, acts.value.dtype) == (
        torch.int64,
        torch.int32,
        torch.float32,
    )
    assert torch.equal(acts.counts(), (acts.dense() > 0).sum(1))


@pytest.mark.parametrize("architecture", SELECT)
def test_sparse_and_dense_activations_decode_to_the_same(architecture: str) -> None:
    sae, x = random_sae(architecture), torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    x[7] = 0
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae.decode(sae.encode_dense(x)))


def test_no_active_latent_decodes_to_the_bias() -> None:
    sae = small("jumprelu")
    assert torch.equal(sae.decode(sae.encode(torch.zeros(2, 2))), sae.b_dec.expand(2, 2))
    assert sae.decode(sae.encode(torch.zeros(0, 2))).shape == (0, 2)


def test_a_threshold_below_zero_lets_no_negative_activation_through() -> None:
    sae = replace(small("jumprelu"), threshold=torch.full((3,), -1.0))
    assert sae.encode_dense(torch.tensor([[-0.5, 2.0]])).tolist() == [[0, 2, 0.5]]


def test_equal_pre_activations_are_kept_from_the_lowest_latent() -> None:
    values = torch.tensor([[1.0, 3, 3, 3, 2], [5, 5, 5, 5, 5], [0, 1, 2, 3, 4]])
    assert top_k(values, 2).sort().values.tolist() == [[1, 2], [0, 1], [3, 4]]
    assert top_k(values, 5).sort().values.tolist() == [[0, 1, 2, 3, 4]] * 3


@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 6)
)
def test_top_k_is_a_stable_sort(rows: list[list[int]], k: int) -> None:
    expected = [sorted(sorted(range(6), key=lambda i: (-row[i], i))[:k]) for row in rows]
    assert top_k(torch.tensor(rows, dtype=torch.float32), k).sort().values.tolist() == expected


def test_ranking_by_decoder_norm_changes_which_latents_win_but_not_their_value() -> None:
    x = torch.tensor([[-1.0, 4.0]])
    assert small("topk", k=1).encode_dense(x).tolist() == [[0, 4, 0]]
    ranked = small("topk", k=1, rank_by_decoder_norm=True)
    assert ranked.encode_dense(x).tolist() == [[0, 0, 1]]


def test_b_dec_is_subtracted_only_where_the_configuration_says_so() -> None:
    x = torch.tensor([[1.0, 1.0]])
    assert small().normalise(x).x.tolist() == [[1, 1]]
    assert small(subtract_b_dec=True).normalise(x).x.tolist() == [[0.75, 0.5]]


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm"])
def test_normalised_inputs_are_undone_with_the_input_or_the_last_encode(norm: str) -> None:
    sae = random_sae("standard", input_norm=norm)
    x = 10 * torch.randn(6, 8, generator=torch.Generator().manual_seed(2)) + 3
    mean, scale = (
        (x.mean(1, keepdim=True), x.std(1, keepdim=True))
        if norm == "layer_norm"
        else (torch.zeros(6, 1), x.norm(dim=1, keepdim=True) / 8**0.5)
    )
    expected = (sae.encode_dense(x) @ sae.W_dec + sae.b_dec) * scale + mean
    torch.testing.assert_close(sae.decode(sae.encode_dense(x)), expected)
    torch.testing.assert_close(sae.canonical_scale(x), scale.squeeze(1))
    acts = sae.encode(x)
    sae.encode(torch.randn(3, 8))
    torch.testing.assert_close(sae.decode(acts, x), expected)
    with pytest.raises(ValueError, match="pass x with 6 rows"):
        sae.decode(acts)


@pytest.mark.parametrize("d_in", [1, 2, 7, 256])
def test_mean_and_spread_of_each_row_are_those_of_numpy_on_the_host_and_by_torch(d_in: int) -> None:
    rows = 3 * torch.randn(5, d_in, generator=torch.Generator().manual_seed(d_in)) + 100
    wide = rows.double().numpy()
    std = np.sqrt(np.square(wide - wide.mean(1, keepdims=True)).sum(1, keepdims=True) / max(1, d_in - 1))
    for moments in (mean_and_std, mean_and_std_by_torch):
        mean, spread = moments(rows)
        assert mean.numpy() == pytest.approx(wide.mean(1, keepdims=True), rel=1e-6)
        assert spread.numpy() == pytest.approx(std, rel=1e-4, abs=1e-4)


def test_a_zero_vector_survives_normalisation() -> None:
    for norm in ("layer_norm", "constant_norm"):
        sae = random_sae("standard", input_norm=norm)
        assert bool(sae.normalise(torch.zeros(2, 8)).x.isfinite().all())
        assert bool(sae.decode(sae.encode(torch.zeros(2, 8))).isfinite().all())


def test_constant_input_scaling_is_part_of_the_decoder_norm() -> None:
    sae = small(input_scale=0.5, output_scale=2.0)
    x = torch.tensor([[4.0, 0.0]])
    assert sae.encode_dense(x).tolist() == [[2, 0, 0]]
    assert sae.decode(sae.encode(x)).tolist() == [[8.5, 1.0]]
    assert sae.decoder_norm.tolist() == [4, 2, 10]


def test_canonical_activations_rebuild_the_reconstruction_from_unit_rows() -> None:
    sae = random_sae("topk", input_norm="layer_norm", input_scale=0.5, output_scale=2.0)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3)) * 7 + 1
    canonical = sae.encode_dense(x) * sae.canonical_scale(x)[:, None] * sae.decoder_norm
    direction = torch.nn.functional.normalize(sae.W_dec, dim=1)
    without = sae.decode(torch.zeros(5, 24), x)
    torch.testing.assert_close(canonical @ direction + without, sae.decode(sae.encode(x)))


def test_the_skip_path_reads_the_raw_input() -> None:
    plain = small(hook_name_out="blocks.0.hook_mlp_out")
    sae = replace(plain, W_skip=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    x = torch.tensor([[1.0, 2.0]])
    assert (sae.decode(sae.encode(x)) - plain.decode(plain.encode(x))).tolist() == [[2, 1]]


def test_any_leading_shape_and_heads_are_flattened() -> None:
    sae, x = random_sae("topk"), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(4))
    assert sae.encode_dense(x).shape == (2, 3, 24)
    assert sae.decode(sae.encode_dense(x)).shape == (2, 3, 8)
    assert sae.encode(x).shape == (6, 24)
    assert torch.equal(sae.encode_dense(x.reshape(2, 3, 4, 2)), sae.encode_dense(x))
    with pytest.raises(ValueError, match="x is 2 × 7; this SAE reads vectors of 8 numbers"):
        sae.encode(torch.zeros(2, 7))
    with pytest.raises(ValueError, match="this SAE has 24 latents"):
        sae.decode(torch.zeros(2, 48))


def test_wrong_shapes_and_settings_are_refused_with_the_expected_ones() -> None:
    with pytest.raises(ValueError, match="W_dec is 2 × 3; expected 3 × 2"):
        replace(small(), W_dec=W_DEC.T)
    with pytest.raises(ValueError, match="threshold is missing"):
        replace(small(), cfg=replace(small().cfg, architecture="jumprelu"))
    for k in (None, 0, 4, True):
        with pytest.raises(ValueError, match="k is"):
            small("topk", k=k)
    with pytest.raises(ValueError, match="Architecture 'relu' is not one of"):
        small("relu")


def test_identity_depends_on_what_is_computed_alone() -> None:
    sae = small("topk")
    same = replace(
        sae,
        cfg=replace(sae.cfg, model_name="gpt2", format="openai", metadata={"seed": 1}),
        W_enc=W_ENC.T.contiguous().T,
        W_dec=W_DEC.half().float(),
    )
    assert sae.identity() == same.identity()
    assert len(sae.identity()) == 64
    others = [
        replace(sae, b_enc=torch.tensor([0.0, 0.0, 1e-7])),
        *(
            replace(sae, cfg=replace(sae.cfg, **change))
            for change in (
                {"k": 1},
                {"hook_name": "blocks.1.hook_resid_post"},
                {"hook_name_out": "blocks.1.hook_mlp_out"},
                {"input_norm": "layer_norm"},
                {"input_scale": 2.0},
                {"output_scale": 2.0},
                {"subtract_b_dec": True},
                {"rank_by_decoder_norm": True},
            )
        ),
    ]
    assert len({sae.identity(), *(other.identity() for other in others)}) == 1 + len(others)


def test_batchtopk_at_inference_is_a_jumprelu_and_has_its_identity() -> None:
    sae = small("batchtopk")
    assert sae.identity() == replace(sae, cfg=replace(sae.cfg, architecture="jumprelu")).identity()


def test_a_device_it_is_already_on_copies_nothing() -> None:
    sae = small()
    assert sae.to("cpu") is sae
    assert sae.to("meta").W_dec.device.type == "meta"
