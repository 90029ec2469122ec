"""Checkpoints as their libraries write them give those libraries' own numbers; bad ones give a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_backend.core.checkpoints import CheckpointError, load
from sae_backend.core.sae import SparseAutoencoder

FIXTURES = Path(__file__).parents[1] / "fixtures"
BAD = FIXTURES / "bad"
DEMO = Path(__file__).parents[2] / "demo" / "saes" / "resid_post_2_topk32_1024"

READ: dict[str, Mapping[str, Any]] = {
    "saelens/gated": {"architecture": "gated", "k": None},
    "saelens/jumprelu": {"architecture": "jumprelu", "subtract_b_dec": False},
    "saelens/skip_transcoder": {
        "hook_name_out": "blocks.3.hook_mlp_out",
        "d_out": 48,
        "subtract_b_dec": False,
    },
    "saelens/standard": {"architecture": "standard", "hook_name": "blocks.3.hook_resid_post"},
    "saelens/standard_bf16": {"architecture": "standard"},
    "saelens/standard_constant_norm_rescale": {"input_norm": "constant_norm"},
    "saelens/standard_hook_z": {"hook_name": "blocks.3.attn.hook_z"},
    "saelens/standard_layer_norm": {"input_norm": "layer_norm"},
    "saelens/topk": {"architecture": "topk", "k": 16},
    "saelens/topk_rescale_dec_norm": {"architecture": "topk", "k": 16, "rank_by_decoder_norm": False},
    "saelens/train_ckpt_activation_scaler": {"input_scale": 0.35, "output_scale": 1 / 0.35},
    "saelens/train_ckpt_whitening": {"input_norm": "none"},
    "saelens/train_matryoshka_inference": {"architecture": "jumprelu"},
    "saelens/transcoder": {"hook_name": "blocks.3.ln2.hook_normalized", "d_in": 64, "d_out": 48},
    "saelens_legacy/v2.1.3_dir_scaled": {"hook_name": "blocks.3.hook_resid_pre", "subtract_b_dec": True},
    "saelens_legacy/v5.11.0_standard_finetuned": {"architecture": "standard", "model_name": "gpt2-small"},
    "saelens_legacy/v5.11.0_tanh_relu": {"architecture": "tanh_relu"},
    "openai/tied_relu": {"architecture": "standard", "input_norm": "none", "hook_name": None},
    "openai/v1_relu": {"architecture": "standard", "input_norm": "none"},
    "openai/v5_topk": {"architecture": "topk", "k": 16, "input_norm": "layer_norm"},
    "openai/v5_topk_repo_state_dict": {"architecture": "topk", "k": 16, "input_norm": "layer_norm"},
}


def expected(name: str) -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / name / "expected.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays}


def assert_equals(sae: SparseAutoencoder, wanted: dict[str, torch.Tensor], tolerance: float = 6e-7) -> None:
    """Compare with the library's arrays, relative to their largest value."""
    acts = sae.encode_dense(wanted["x"])
    assert (acts - wanted["acts"]).abs().max() <= tolerance * wanted["acts"].abs().max()
    recon, flat = sae.decode(acts), wanted["recon"].reshape(len(acts), -1)
    assert (recon - flat).abs().max() <= tolerance * flat.abs().max()


@pytest.mark.parametrize("name", READ)
def test_a_checkpoint_computes_what_its_library_computes(name: str) -> None:
    sae = load(FIXTURES / name)
    assert_equals(sae, expected(name), 5e-3 if name.endswith("bf16") else 6e-7)
    assert {field: getattr(sae.cfg, field) for field in READ[name]} == READ[name]
    assert all(tensor.dtype == torch.float32 for tensor in sae.tensors().values())


def test_every_fixture_with_expected_values_is_read() -> None:
    found = {path.parent.relative_to(FIXTURES).as_posix() for path in FIXTURES.glob("*/*/expected.npz")}
    mine = {name for name in found if name.split("/")[0] in ("saelens", "saelens_legacy", "openai")}
    assert mine == READ.keys() | {
        "openai/train_py_fastautoencoder",
        "saelens/train_batchtopk_rescale_training_ckpt",
    }


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
        ({"input_norm": "batch"}, "known are none, layer_norm, constant_norm"),
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


@pytest.mark.parametrize("architecture", ["abstopk", "matching_pursuit", "temporal", "top-p"])
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


REFUSED = {
    "cfg/architecture_list": "architecture is a list; known are standard",
    "cfg/d_sae_float": "d_sae is 16.5; it must be a whole number",
    "cfg/duplicate_d_in": "cfg.json sets d_in twice",
    "cfg/huge_int_literal": "cfg.json is not JSON",
    "cfg/k_bool": "k is True; it must be a whole number",
    "cfg/metadata_string": "metadata is 'hello'; expected an object",
    "cfg/normalize_unknown": "normalize_activations is 'vibes'; known are",
    "cfg/not_json": "cfg.json is not JSON",
    "cfg/root_list": "cfg.json holds a list; expected an object",
    "cfg/utf16": "cfg.json is not JSON in UTF-8",
    "empty/empty.safetensors": "empty.safetensors is empty; upload it again",
    "empty/empty.pkl": "empty.pkl is empty",
    "empty/empty.zip": "empty.zip is empty",
    "empty/empty.json": "empty.json is empty",
    "empty/zip_no_entries.zip": "is an archive without weights",
    "pickle/exec_legacy_saelens_layout.pt": "asks for the Python object exec",
    "pickle/exec_raw.pkl": "is a raw pickle, which can run code",
    "pickle/exec_torch_nonzip.pt": "container from before 2020",
    "pickle/exec_torch_zip.pt": "asks for the Python object exec",
    "pickle/memo_bomb.pkl": "is a raw pickle",
    "pickle/object_array.npy": "no weights in object_array.npy",
    "pickle/pickle_named.safetensors": "is a raw pickle",
    "safetensors/header_array.safetensors": "not a readable safetensors",
    "safetensors/header_len_90MB.safetensors": "invalid header length",
    "safetensors/header_len_huge.safetensors": "header too large",
    "safetensors/header_not_utf8.safetensors": "not a readable safetensors",
    "safetensors/hole.safetensors": "not a readable safetensors",
    "safetensors/int_weights.safetensors": "No known format. int_weights.safetensors has W_dec, W_enc",
    "safetensors/offset_past_end.safetensors": "not a readable safetensors",
    "safetensors/seven_bytes.safetensors": "header too small",
    "safetensors/shape_overflow.safetensors": "overflow",
    "safetensors/truncated_half.safetensors": "not fully covered",
    "safetensors/truncated_header.safetensors": "not a readable safetensors",
    "safetensors/truncated_last_byte.safetensors": "not fully covered",
    "safetensors/unknown_dtype.safetensors": "not a readable safetensors",
    "semantic/bias_mismatch": "W_enc is 8 × 16, but b_enc has 15 numbers",
    "semantic/empty_dims": "cfg.json says d_in 8, but W_enc is 0 × 16",
    "semantic/inf_bias": "b_dec has values that are NaN or infinite",
    "semantic/k_larger_than_d_sae": "k is 100; it must be a whole number from 1 to d_sae, 16",
    "semantic/missing_W_dec": "W_dec missing; a SAELens standard SAE needs it. Found: W_enc, b_dec, b_enc",
    "torch/k_negative.pt": "No known format. k_negative.pt has W_enc, W_dec, b_enc, b_dec, k",
    "torch/list.pt": "holds a list; expected a state dict",
    "torch/meta_tensor.pt": "W_enc is not a plain dense tensor",
    "torch/not_a_dict.pt": "holds a Tensor; expected a state dict",
    "torch/sparse_tensor.pt": "encoder.weight is not a plain dense tensor",
    "torch/stride_oob.pt": "not a readable torch file",
    "torch/whole_module.pt": "asks for the Python object torch.nn.modules.linear.Linear",
}
HARMLESS = {
    "cfg/dtype_attr": "the dtype of cfg.json is not read",
    "cfg/dtype_unknown": "the dtype of cfg.json is not read",
    "cfg/metadata_null": "metadata is optional",
    "cfg/version_garbage": "the version is not read",
    "semantic/zero_dec": "a decoder of zeros is useless and computes",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_file_gives_a_sentence(name: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        load(BAD / name)
    assert REFUSED[name] in str(refused.value)
    assert str(refused.value).endswith(".") and str(refused.value).isprintable()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_but_harmless_is_read(name: str) -> None:
    sae = load(BAD / name)
    assert bool(sae.decode(sae.encode(torch.ones(2, 8))).isfinite().all())


def test_every_bad_file_is_accounted_for() -> None:
    folders = {path.parent.relative_to(BAD).as_posix() for path in BAD.glob("*/*/cfg.json")}
    files = {path.relative_to(BAD).as_posix() for path in BAD.glob("*/*") if path.is_file()}
    turned = {"semantic/transposed", "semantic/square_ambiguous"}
    found = {name for name in folders | files if not name.startswith("good_control")}
    assert found == REFUSED.keys() | HARMLESS.keys() | turned


def openai_state(**changes: Any) -> dict[str, Any]:
    state = {
        "pre_bias": torch.zeros(4),
        "latent_bias": torch.zeros(6),
        "encoder.weight": torch.ones(6, 4),
        "decoder.weight": torch.ones(4, 6),
        "activation": "TopK",
        "activation_state_dict": {"k": 2, "postact_fn": "ReLU"},
    }
    return {name: value for name, value in (state | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "Identity"}, "activation is 'Identity'; known are ReLU, TopK"),
        ({"activation_state_dict": {"k": 2, "postact_fn": "Identity"}}, "activations may be negative"),
        ({"activation_state_dict": {}}, "says TopK but not k"),
        ({"activation_state_dict": {"k": -5, "postact_fn": "ReLU"}}, "k is -5"),
        ({"activation_state_dict": {"k": 7, "postact_fn": "ReLU"}}, "from 1 to d_sae, 6"),
        ({"surprise": torch.zeros(2)}, "has no surprise; these weights are of another kind"),
        ({"pre_bias": torch.zeros(4, dtype=torch.int32)}, "pre_bias is torch.int32; expected"),
        ({"latent_bias": 3.0}, "latent_bias is a float"),
        ({"latent_bias": torch.zeros(())}, "b_enc is a single number"),
        ({"encoder.weight": torch.full((6, 4), torch.nan)}, "W_enc has values that are NaN"),
        ({"decoder.weight": torch.ones(4, 5)}, "W_dec is 5 × 4; expected 6 × 4"),
        ({"encoder.weight": torch.ones(1).expand(6, 4)}, "claims 24 numbers but stores fewer"),
        ({"encoder.weight": torch.ones(6, 4).to_sparse()}, "not a plain dense tensor"),
    ],
)
def test_a_bad_state_dict_gives_a_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save(openai_state(**changes), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_tied_decoder_may_be_left_out(tmp_path: Path) -> None:
    torch.save(openai_state(**{"decoder.weight": None}), tmp_path / "a.pt")
    assert torch.equal(load(tmp_path).W_dec, torch.ones(6, 4))


def test_a_choice_of_checkpoints_and_a_missing_path_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an empty folder"):
        load(tmp_path)
    for name in ("step_1.pt", "step_2.pt"):
        torch.save(openai_state(), tmp_path / name)
    with pytest.raises(CheckpointError, match="There are 2 checkpoints here .step_1.pt, step_2.pt."):
        load(tmp_path)
    assert load(tmp_path / "step_2.pt").cfg.k == 2
    with pytest.raises(CheckpointError, match="There is no file or folder"):
        load(tmp_path / "step_3.pt")


def test_a_configuration_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["openai/tied_relu/ae.pt", "saelens/jumprelu/sae_weights.safetensors"])
def test_a_damaged_file_is_read_or_refused_with_a_sentence(tmp_path: Path, name: str) -> None:
    """One exception type for whatever a flipped byte makes of a header, a pickle or a directory."""
    original = (FIXTURES / name).read_bytes()
    shutil.copytree((FIXTURES / name).parent, tmp_path / "sae")
    path = tmp_path / "sae" / Path(name).name
    places = np.random.default_rng(0).integers(0, 1500, 60).tolist()
    for place in [*places, *(len(original) - 1 - p for p in places[:30])]:
        damaged = bytearray(original)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load(path)
        except CheckpointError as error:
            assert str(error).endswith(".")
    path.write_bytes(original[: len(original) // 2])
    with pytest.raises(CheckpointError):
        load(path)
