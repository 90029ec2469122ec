"""Checkpoints as their libraries write them give those libraries' own numbers, and settings are checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_backend.core.checkpoints import CheckpointError, detect, load
from sae_backend.core.sae import SparseAutoencoder
from tests.formats import FIXTURES
from tests.formats import arrays as expected

BAD = FIXTURES / "bad"
DEMO = Path(__file__).parents[2] / "demo" / "saes" / "resid_post_2_topk32_1024"

READ: dict[str, Mapping[str, Any]] = {
    "saelens/gated": {"architecture": "gated", "k": None},
    "saelens/jumprelu": {"architecture": "jumprelu", "subtract_b_dec": False},
    "saelens/jumprelu_transcoder": {"architecture": "jumprelu", "hook_name_out": "blocks.3.hook_mlp_out", "d_out": 48},
    "saelens/skip_transcoder": {
        "hook_name_out": "blocks.3.hook_mlp_out",
        "d_out": 48,
        "subtract_b_dec": False,
    },
    "saelens/standard": {"architecture": "standard", "hook_name": "blocks.3.hook_resid_post"},
    "saelens/standard_bf16": {"architecture": "standard"},
    "saelens/standard_constant_norm_rescale": {"input_norm": "constant_norm"},
    "saelens/standard_covariance_whitening": {"input_norm": "none"},
    "saelens/standard_expected_average_only_in": {"input_norm": "none", "input_scale": 1.0},
    "saelens/standard_hook_z": {"hook_name": "blocks.3.attn.hook_z"},
    "saelens/standard_layer_norm": {"input_norm": "layer_norm"},
    "saelens/standard_no_bdec_in": {"subtract_b_dec": False},
    "saelens/topk": {"architecture": "topk", "k": 16},
    "saelens/topk_layer_norm_oai": {"architecture": "topk", "input_norm": "layer_norm"},
    "saelens/topk_rescale_dec_norm": {"architecture": "topk", "k": 16, "rank_by_decoder_norm": False},
    "saelens/train_batchtopk_inference": {"architecture": "jumprelu"},
    "saelens/train_batchtopk_training_ckpt": {"architecture": "batchtopk"},
    "saelens/train_ckpt_activation_scaler": {"input_scale": 0.35, "output_scale": 1 / 0.35},
    "saelens/train_ckpt_whitening": {"input_norm": "none"},
    "saelens/train_gated_inference": {"architecture": "gated"},
    "saelens/train_jumprelu_inference": {"architecture": "jumprelu"},
    "saelens/train_matryoshka_inference": {"architecture": "jumprelu"},
    "saelens/train_matryoshka_training_ckpt": {"architecture": "batchtopk"},
    "saelens/train_standard_inference": {"architecture": "standard"},
    "saelens/train_standard_training_ckpt": {"architecture": "standard"},
    "saelens/train_topk_training_ckpt": {"architecture": "topk", "k": 16},
    "saelens/transcoder": {"hook_name": "blocks.3.ln2.hook_normalized", "d_in": 64, "d_out": 48},
    "saelens_legacy/sae_training_2024-03_pt": {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2-small"},
    "saelens_legacy/v0.7.0_dir": {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2-small"},
    "saelens_legacy/v0.7.0_pt": {"hook_name": "blocks.3.hook_resid_pre", "subtract_b_dec": True},
    "saelens_legacy/v2.1.3_dir": {"hook_name": "blocks.3.hook_resid_pre", "subtract_b_dec": True},
    "saelens_legacy/v2.1.3_dir_scaled": {"hook_name": "blocks.3.hook_resid_pre", "subtract_b_dec": True},
    "saelens_legacy/v3.23.4_standard": {"architecture": "standard", "hook_name": "blocks.3.hook_resid_pre"},
    "saelens_legacy/v3.23.4_standard_finetuned": {"architecture": "standard"},
    "saelens_legacy/v5.11.0_gated": {"architecture": "gated"},
    "saelens_legacy/v5.11.0_jumprelu": {"architecture": "jumprelu"},
    "saelens_legacy/v5.11.0_standard": {"architecture": "standard"},
    "saelens_legacy/v5.11.0_standard_finetuned": {"architecture": "standard", "model_name": "gpt2-small"},
    "saelens_legacy/v5.11.0_tanh_relu": {"architecture": "tanh_relu"},
    "saelens_legacy/v5.11.0_topk": {"architecture": "topk", "k": 16},
    "openai/tied_relu": {"architecture": "standard", "input_norm": "none", "hook_name": None},
    "openai/topk_no_layernorm_ambiguous": {"architecture": "topk", "k": 16, "input_norm": "layer_norm"},
    "openai/v1_relu": {"architecture": "standard", "input_norm": "none"},
    "openai/v5_topk": {"architecture": "topk", "k": 16, "input_norm": "layer_norm"},
    "openai/v5_topk_repo_state_dict": {"architecture": "topk", "k": 16, "input_norm": "layer_norm"},
}


def assert_equals(sae: SparseAutoencoder, wanted: dict[str, torch.Tensor], tolerance: float = 6e-7) -> None:
    """Compare with the library's arrays, relative to their largest value."""
    acts = sae.encode_dense(wanted["x"])
    assert (acts - wanted["acts"]).abs().max() <= tolerance * wanted["acts"].abs().max()
    recon, flat = sae.decode(acts), wanted["recon"].reshape(len(acts), -1)
    assert (recon - flat).abs().max() <= tolerance * flat.abs().max()


@pytest.mark.parametrize("name", READ)
def test_what_the_files_say_is_read(name: str) -> None:
    cfg = load(FIXTURES / name).cfg
    assert {field: getattr(cfg, field) for field in READ[name]} == READ[name]


def test_a_batchtopk_training_checkpoint_is_read_as_the_inference_model_of_the_same_weights() -> None:
    """The library's batch-wise forward depends on the batch; its inference export is the reference."""
    sae = load(FIXTURES / "saelens/train_batchtopk_rescale_training_ckpt")
    assert sae.cfg.architecture == "batchtopk"
    assert sae.threshold is not None and sae.threshold.unique().numel() == 1
    assert_equals(sae, expected("saelens/train_matryoshka_inference"))


def test_hook_z_inputs_may_keep_their_heads() -> None:
    sae, wanted = load(FIXTURES / "saelens/standard_hook_z"), expected("saelens/standard_hook_z")
    assert torch.equal(sae.encode_dense(wanted["x_native"]), sae.encode_dense(wanted["x"]))


def test_train_py_of_openai_does_not_say_k() -> None:
    folder = FIXTURES / "openai/train_py_fastautoencoder"
    with pytest.raises(CheckpointError, match="without its k. Give k"):
        load(folder)
    assert_equals(load(folder, k=16), expected("openai/train_py_fastautoencoder"))


def test_a_person_may_say_that_an_openai_topk_has_no_layer_norm() -> None:
    wanted = expected("openai/v5_topk")
    renamed = {"x": wanted["x"], "acts": wanted["acts_no_layernorm"], "recon": wanted["recon_no_layernorm"]}
    assert_equals(load(FIXTURES / "openai/v5_topk", input_norm="none"), renamed)


def test_how_long_each_latent_has_not_fired_in_training_is_read_where_it_is_counted(tmp_path: Path) -> None:
    file = FIXTURES / "openai/v5_topk/v5_32k_resid_post_mlp_3.pt"
    state = torch.load(file, weights_only=True)
    sae = load(file.parent)
    assert sae.since_fired is not None and sae.since_fired.unique().numel() > 10
    assert torch.equal(sae.since_fired, state["stats_last_nonzero"])
    for odd in (state["stats_last_nonzero"][1:], state["stats_last_nonzero"] - 5, torch.rand(256), "long"):
        torch.save({**state, "stats_last_nonzero": odd}, tmp_path / file.name)
        other = load(tmp_path)
        assert other.since_fired is None and other.identity() == sae.identity()


def test_the_same_weights_from_two_libraries_have_one_identity(tmp_path: Path) -> None:
    saelens = load(DEMO)
    weights = load_file(DEMO / "sae_weights.safetensors")
    state = {
        "pre_bias": weights["b_dec"],
        "latent_bias": weights["b_enc"],
        "encoder.weight": weights["W_enc"].T,
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "activation": "TopK",
        "activation_state_dict": {"k": 32, "postact_fn": "ReLU"},
    }
    torch.save(state, tmp_path / "autoencoder.pt")
    openai = load(tmp_path / "autoencoder.pt", hook_name="blocks.2.hook_resid_post")
    assert openai.identity() == saelens.identity()
    assert load(tmp_path / "autoencoder.pt").identity() != saelens.identity()


def test_a_person_wins_over_the_file_and_the_file_keeps_its_metadata() -> None:
    sae = load(DEMO, hook_name="blocks.1.hook_resid_post", model_name="other", k=7, input_norm="none")
    assert (sae.cfg.hook_name, sae.cfg.model_name, sae.cfg.k, sae.cfg.input_norm) == (
        "blocks.1.hook_resid_post",
        "other",
        7,
        "none",
    )
    assert sae.cfg.metadata["training_tokens"] == 2_000_000
    assert sae.cfg.metadata["context_size"] == 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"k": 1025}, "from 1 to d_sae, 1024"),
        ({"hook_name": "<script>"}, "no hook point"),
        ({"input_norm": "batch"}, "known are none, layer_norm, constant_norm, centred"),
        ({"input_scale": float("nan")}, "must be a positive number"),
        ({"max_bytes": 1000}, "is larger than 1,000 bytes, the limit set here"),
        ({"max_bytes": 1_500_000}, "in float32; the limit set here is 1,500,000"),
    ],
)
def test_what_a_person_says_is_checked_too(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(DEMO, **overrides)


def edited(tmp_path: Path, name: str, **settings: Any) -> Path:
    """Copy a fixture with other settings in its cfg.json."""
    folder = tmp_path / "sae"
    shutil.copytree(FIXTURES / name, folder)
    cfg = json.loads((folder / "cfg.json").read_text()) | settings
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return folder


@pytest.mark.parametrize("architecture", ["matching_pursuit", "temporal", "top-p"])
def test_other_architectures_are_refused_by_name(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(CheckpointError, match=architecture):
        load(edited(tmp_path, "saelens/standard", architecture=architecture))


def test_a_real_matching_pursuit_checkpoint_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="architecture matching_pursuit is not supported"):
        load(FIXTURES / "saelens/matching_pursuit")


def test_settings_that_would_be_computed_wrongly_are_refused(tmp_path: Path) -> None:
    metadata = {"hook_name": "blocks.3.attn.hook_z", "hook_head_index": 3}
    with pytest.raises(CheckpointError, match="single attention head 3"):
        load(edited(tmp_path / "head", "saelens/standard", metadata=metadata))
    silent = edited(tmp_path / "silent", "saelens/transcoder", metadata={})
    with pytest.raises(CheckpointError, match="give hook_name_out"):
        load(silent)
    assert load(silent, hook_name_out="blocks.3.hook_mlp_out").cfg.hook_name_out == "blocks.3.hook_mlp_out"
    with pytest.raises(CheckpointError, match="d_in is True; it must be a whole number"):
        load(edited(tmp_path / "true", "saelens/standard", d_in=True))
    with pytest.raises(CheckpointError, match="normalised or scaled inputs"):
        load(edited(tmp_path / "normed", "saelens/transcoder", normalize_activations="layer_norm"))


def test_a_transcoder_never_subtracts_the_bias_of_its_output(tmp_path: Path) -> None:
    folder = edited(tmp_path, "saelens/transcoder", apply_b_dec_to_input=True)
    assert_equals(load(folder), expected("saelens/transcoder"))


@pytest.mark.parametrize("norm", ["expected_average_only_in", "covariance_whitening", True])
def test_a_factor_that_is_not_in_the_file_is_taken_as_one_and_said(tmp_path: Path, norm: Any) -> None:
    sae = load(edited(tmp_path, "saelens/standard", normalize_activations=norm))
    assert_equals(sae, expected("saelens/standard"))
    assert "1 is assumed" in str(sae.cfg.metadata["note"])


def centring(**metadata: Any) -> dict[str, Any]:
    return {"metadata": {"hook_name": "blocks.3.hook_resid_post", "model_from_pretrained_kwargs": metadata}}


def test_inputs_are_centred_where_the_file_says_that_its_language_model_was(tmp_path: Path) -> None:
    folder = edited(tmp_path, "saelens/standard", **centring(center_writing_weights=True))
    sae, wanted = load(folder), expected("saelens/standard")
    assert sae.cfg.input_norm == "centred"
    x = wanted["x"] + torch.linspace(-5, 5, len(wanted["x"])).unsqueeze(1)
    centred = wanted["x"] - wanted["x"].mean(1, keepdim=True)
    plain = load(folder, input_norm="none")
    torch.testing.assert_close(sae.encode_dense(x), plain.encode_dense(centred), rtol=1e-4, atol=1e-4)
    there = plain.decode(plain.encode(centred)) + x.mean(1, keepdim=True)
    torch.testing.assert_close(sae.decode(sae.encode(x)), there, rtol=1e-4, atol=1e-4)


def test_whether_inputs_were_centred_is_asked_of_the_oldest_files_alone(tmp_path: Path) -> None:
    def asked(folder: Path) -> list[Any]:
        return [question.default for question in detect(folder).questions if question.field == "input_norm"]

    assert asked(FIXTURES / "saelens_legacy/v2.1.3_dir_scaled") == ["none"]
    assert asked(FIXTURES / "saelens/standard") == []
    assert asked(edited(tmp_path / "no", "saelens/standard", **centring(center_writing_weights=False))) == []
    assert asked(edited(tmp_path / "yes", "saelens/standard", **centring(center_writing_weights=True))) == ["centred"]
    heads = {"hook_point": "blocks.3.attn.hook_z"}
    assert asked(edited(tmp_path / "z", "saelens_legacy/v2.1.3_dir_scaled", **heads)) == []


def test_a_layer_placeholder_becomes_the_layer(tmp_path: Path) -> None:
    folder = edited(tmp_path, "saelens_legacy/v2.1.3_dir_scaled", hook_point="blocks.{layer}.hook_mlp_out")
    assert load(folder).cfg.hook_name == "blocks.3.hook_mlp_out"


def test_metadata_keeps_only_small_plain_values(tmp_path: Path) -> None:
    metadata = {
        "context_size": 128,
        "long": "x" * 10_000,
        "list": [1] * 9,
        "nul": "a\0b",
        "deep": {"fold_ln": False},
    }
    sae = load(edited(tmp_path, "saelens/standard", metadata=metadata | {f"n{i}": i for i in range(500)}))
    assert sae.cfg.metadata["context_size"] == 128
    assert sae.cfg.metadata["deep.fold_ln"] is False
    assert not sae.cfg.metadata.keys() & {"long", "list", "nul"}
    assert len(sae.cfg.metadata) <= 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_equal_values_in_any_storage_dtype_have_one_identity(tmp_path: Path, dtype: torch.dtype) -> None:
    """Weights are rounded to sixteenths first, so that every dtype holds them exactly."""
    folder = edited(tmp_path, "saelens/standard")
    rounded = {
        name: (t * 16).round() / 16 for name, t in load_file(folder / "sae_weights.safetensors").items()
    }
    save_file(rounded, folder / "sae_weights.safetensors")
    identity = load(folder).identity()
    save_file({name: t.to(dtype) for name, t in rounded.items()}, folder / "sae_weights.safetensors")
    assert load(folder).identity() == identity


def test_a_loaded_sae_does_not_change_when_its_file_does(tmp_path: Path) -> None:
    folder = edited(tmp_path, "saelens/standard")
    sae = load(folder)
    before = sae.identity()
    with (folder / "sae_weights.safetensors").open("r+b") as file:
        file.seek(-400, 2)
        file.write(bytes(400))
    assert sae.identity() == before


def test_a_file_alone_takes_the_configuration_beside_it() -> None:
    folder = FIXTURES / "saelens/standard"
    assert load(folder / "sae_weights.safetensors").identity() == load(str(folder)).identity()


def test_matrices_stored_the_other_way_round_are_turned() -> None:
    good, turned = load(BAD / "good_control"), load(BAD / "semantic/transposed")
    assert (good.W_enc.shape, turned.W_enc.shape, turned.W_dec.shape) == ((8, 16), (8, 16), (16, 8))
    raw = load_file(BAD / "semantic/transposed/sae_weights.safetensors")
    assert torch.equal(turned.W_enc, raw["W_enc"].T)
    square = load(BAD / "semantic/square_ambiguous")
    assert torch.equal(
        square.W_enc, load_file(BAD / "semantic/square_ambiguous/sae_weights.safetensors")["W_enc"]
    )
