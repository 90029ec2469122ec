"""Every format but SAELens' and OpenAI's gives its own library's numbers, and its hook point and model are found."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_backend.core.checkpoints import CheckpointError, detect, load
from sae_backend.core.sae import SparseAutoencoder
from tests.core.test_checkpoints import assert_equals
from tests.core.test_checkpoints_numbers import assert_fused
from tests.formats import FIXTURES
from tests.formats import arrays as expected

READ: dict[str, Mapping[str, Any]] = {
    "connor_rob_hook_z/standard": {"format": "matrices", "hook_name": "blocks.0.attn.hook_z", "lm_name": "gpt2-small"},
    "crosscoder_dictionary_learning/batchtopk_sae_normalized_hub": {"format": "dictionary_learning", "k": None},
    "dictionary_learning/autoencoder_new": {"architecture": "standard", "hook_name": "blocks.3.hook_resid_post"},
    "dictionary_learning/batch_topk": {"architecture": "batchtopk", "lm_name": "EleutherAI/pythia-70m-deduped"},
    "dictionary_learning/batch_topk_threshold_unset": {"architecture": "batchtopk"},
    "dictionary_learning/gated": {"architecture": "gated", "hook_name": "blocks.3.hook_resid_post"},
    "dictionary_learning/jumprelu": {"architecture": "jumprelu", "format": "dictionary_learning"},
    "dictionary_learning/matryoshka_batch_topk": {"architecture": "batchtopk", "context_size": 128},
    "dictionary_learning/standard": {"architecture": "standard", "hook_name": "blocks.3.hook_resid_post"},
    "dictionary_learning/topk": {"architecture": "topk", "k": 16, "file": "ae.pt"},
    "gemma_scope/embedding": {"architecture": "jumprelu", "hook_name": "hook_embed", "input_scale": 1 / 8},
    "gemma_scope_2/clt_layer": {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"},
    "gemma_scope_2/resid_post": {"hook_name": "blocks.17.hook_resid_post", "lm_name": "google/gemma-3-4b-pt"},
    "gemma_scope_2/transcoder": {"hook_name": "blocks.0.mlp.hook_in", "hook_name_out": "blocks.0.hook_mlp_out"},
    "goodfire/l19": {"hook_name": "blocks.19.hook_resid_post", "dtype": "bfloat16"},
    "llama_scope/r1_distill": {"format": "llama_scope", "hook_name": "blocks.15.hook_resid_post"},
    "llama_scope/res": {"dtype": "bfloat16", "input_scale": 8 / 18, "lm_name": "meta-llama/Llama-3.1-8B"},
    "lm_saes/jumprelu": {"architecture": "jumprelu", "input_scale": 8 / 18},
    "lm_saes/topk": {"architecture": "topk", "k": 16},
    "lm_saes/topk_glu": {"architecture": "topk", "k": 16},
    "lm_saes/transcoder_topk": {"hook_name_out": "blocks.15.hook_mlp_out"},
    "mntss_clt/layer2": {"hook_name": "blocks.2.hook_resid_mid", "hook_name_out": "blocks.2.hook_mlp_out"},
    "mwhanna_transcoder/relu": {"hook_name": "blocks.3.mlp.hook_in", "lm_name": "Qwen/Qwen3-4B"},
    "sparsify/groupmax": {"architecture": "groupmax", "k": 16, "lm_name": "HuggingFaceTB/SmolLM2-135M"},
    "sparsify/legacy_2024_cfg": {"k": 16, "hook_name": "blocks.3.hook_resid_post", "lm_name": None},
    "sparsify/skip_transcoder": {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"},
    "sparsify/topk": {"architecture": "topk", "k": 16, "context_size": 2048},
    "sparsify/topk_bf16": {"dtype": "bfloat16", "hook_name": "blocks.3.hook_resid_post"},
    "sparsify/topk_gpt2_h": {"k": 16, "hook_name": "blocks.3.hook_mlp_out"},
    "sparsify/topk_not_normalized": {"k": 16, "hook_name": "blocks.3.hook_resid_post"},
}


@pytest.mark.parametrize("name", READ)
def test_what_the_files_say_is_detected(name: str) -> None:
    found = detect(FIXTURES / name)
    assert {field: getattr(found, field) for field in READ[name]} == READ[name]
    assert (found.d_in, found.d_out, found.d_sae) == (64, 64, 256)
    assert json.loads(json.dumps(vars(found), default=vars))["format"] == found.format


@pytest.mark.parametrize("suffix", [".bin", "", ".txt"])
@pytest.mark.parametrize("name", ["goodfire/l19", "sparsify/topk", "dictionary_learning/topk", "gemma_scope/res"])
def test_no_format_is_told_by_a_files_ending(tmp_path: Path, name: str, suffix: str) -> None:
    shutil.copytree(FIXTURES / name, tmp_path / "sae", ignore=shutil.ignore_patterns("expected.npz"))
    for path in [p for p in (tmp_path / "sae").rglob("*") if p.is_file() and p.suffix != ".json"]:
        path.rename(path.with_name(f"weights{suffix}"))
    found, plain = detect(tmp_path / "sae"), detect(FIXTURES / name)
    assert (found.format, found.architecture, found.d_sae) == (plain.format, plain.architecture, plain.d_sae)


def copied(tmp_path: Path, name: str, to: str = "sae") -> Path:
    """Copy a fixture without its expected values."""
    shutil.copytree(FIXTURES / name, tmp_path / to, ignore=shutil.ignore_patterns("expected.npz"))
    return tmp_path / to


def test_topk_or_batchtopk_is_asked_where_no_file_says(tmp_path: Path) -> None:
    folder = copied(tmp_path, "dictionary_learning/batch_topk")
    (folder / "config.json").unlink()
    found = detect(folder)
    assert [(q.field, q.required, q.default) for q in found.questions[:1]] == [("architecture", False, "topk")]
    assert (found.architecture, found.k) == ("topk", 16)
    assert_equals(load(folder, architecture="batchtopk"), expected("dictionary_learning/batch_topk"), 1e-6)


def test_a_threshold_that_was_never_set_is_said() -> None:
    assert "never set" in detect(FIXTURES / "dictionary_learning/batch_topk_threshold_unset").notes[0]


def test_a_backup_of_a_run_is_read_with_its_biases_scaled_as_a_finished_run_saves_them(tmp_path: Path) -> None:
    folder = copied(tmp_path, "dictionary_learning/topk")
    state, factor = torch.load(folder / "ae.pt", weights_only=True), 3.0
    biases = {name: state[name] / factor for name in ("b_dec", "encoder.bias")}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    config = json.loads((folder / "config.json").read_text())["trainer"]
    backup = {"step": 30, "ae": state | biases, "optimizer": optimizer, "config": config, "norm_factor": factor}
    torch.save(backup, folder / "ae.pt")
    (folder / "config.json").unlink()
    assert_equals(load(folder), expected("dictionary_learning/topk"), 1e-6)
    assert detect(folder).hook_name == "blocks.3.hook_resid_post"


def test_the_file_nearest_to_the_top_is_read_and_another_may_be_named(tmp_path: Path) -> None:
    folder = copied(tmp_path, "dictionary_learning/topk")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"k": torch.tensor(3)}, folder / "checkpoints" / "ae_30.pt")
    assert (load(folder).cfg.k, load(folder, file="checkpoints/ae_30.pt").cfg.k) == (16, 3)
    with pytest.raises(CheckpointError, match="no file of weights b.pt; there are ae.pt, checkpoints/ae_30.pt"):
        load(folder, file="b.pt")


GEMMA = {
    "google--gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82": ("blocks.12.hook_resid_post", None),
    "models--google--gemma-scope-9b-pt-mlp/snapshots/ab/layer_3/width_16k/x": ("blocks.3.hook_mlp_out", None),
    "gemma-scope-2b-pt-att/layer_12/width_16k/average_l0_82": ("blocks.12.attn.hook_z", None),
    "gemma-scope-2b-pt-transcoders/layer_5/width_16k/average_l0_20": (
        "blocks.5.ln2.hook_normalized",
        "blocks.5.hook_mlp_out",
    ),
    "layer_12": (None, None),
}


@pytest.mark.parametrize("place", GEMMA)
def test_gemma_scopes_hook_points_are_told_by_the_path(tmp_path: Path, place: str) -> None:
    source = next((FIXTURES / "gemma_scope/res").rglob("params.npz"))
    (tmp_path / place).mkdir(parents=True)
    shutil.copy(source, tmp_path / place)
    found = detect(tmp_path / place)
    assert (found.hook_name, found.hook_name_out) == GEMMA[place]
    assert {q.field for q in found.questions} == (set() if found.hook_name else {"transcoder", "hook_name"})
    assert_equals(load(tmp_path / place), expected("gemma_scope/res"), 1e-6)


def test_a_gemma_scope_transcoder_is_one_where_a_person_says_so(tmp_path: Path) -> None:
    path = shutil.copy(next((FIXTURES / "gemma_scope/res").rglob("params.npz")), tmp_path)
    with pytest.raises(CheckpointError, match="give hook_name_out"):
        load(path, transcoder=True)
    out = load(path, hook_name="blocks.5.ln2.hook_normalized", hook_name_out="blocks.5.hook_mlp_out")
    assert out.cfg.hook_name_out == "blocks.5.hook_mlp_out"


def test_an_npz_of_any_order_and_compression_is_read(tmp_path: Path) -> None:
    import numpy as np

    with np.load(next((FIXTURES / "gemma_scope/res").rglob("params.npz"))) as arrays:
        params = {name: np.asfortranarray(arrays[name]) for name in arrays}
    np.savez_compressed(tmp_path / "params.npz", **params)
    assert_equals(load(tmp_path), expected("gemma_scope/res"), 1e-6)
    np.savez(tmp_path / "params.npz", **{name: array.astype(">f4") for name, array in params.items()})
    with pytest.raises(CheckpointError, match="holds >f4; expected"):
        load(tmp_path)


def test_an_affine_connection_is_a_path_from_the_input(tmp_path: Path) -> None:
    folder = copied(tmp_path, "gemma_scope_2/resid_post", "transcoder_all")
    path = next(folder.rglob("params.safetensors"))
    A = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    save_file(load_file(path) | {"affine_skip_connection": A}, path)
    cfg = json.loads((path.parent / "config.json").read_text())
    cfg |= {"hf_hook_point_in": "model.layers.4.pre_feedforward_layernorm.output",
            "hf_hook_point_out": "model.layers.4.post_feedforward_layernorm.output"}  # fmt: skip
    (path.parent / "config.json").write_text(json.dumps(cfg))
    wanted = expected("gemma_scope_2/resid_post")
    sae = load(folder)
    assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == ("blocks.4.mlp.hook_in", "blocks.4.hook_mlp_out")
    assert_equals(sae, wanted | {"recon": wanted["recon"] + wanted["x"] @ A}, 1e-6)


def test_llama_scopes_own_activations_are_these_divided_by_the_scale_and_times_the_norm() -> None:
    sae, wanted = load(FIXTURES / "llama_scope/res"), expected("llama_scope/res")
    acts = sae.encode_dense(wanted["x"]) / sae.cfg.input_scale * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(acts, wanted["acts_native"], rtol=1e-3, atol=1e-3)


def test_llama_scopes_thresholds_are_of_activations_times_the_decoders_norm(tmp_path: Path) -> None:
    folder = copied(tmp_path, "llama_scope/res")
    path, before = next(folder.rglob("*.safetensors")), load(folder)
    weights = load_file(path)
    save_file(weights | {"decoder.weight": 2 * weights["decoder.weight"]}, path)
    assert before.threshold is not None
    torch.testing.assert_close(load(folder).threshold, before.threshold / 2)


def test_a_layer_of_a_cross_layer_transcoder_is_one_wherever_it_lies(tmp_path: Path) -> None:
    shutil.copy(next((FIXTURES / "gemma_scope_2/clt_layer").rglob("*.safetensors")), tmp_path / "a.safetensors")
    assert {question.field for question in detect(tmp_path).questions} == {"hook_name", "hook_name_out"}


def test_a_scale_that_is_in_no_file_is_asked_for(tmp_path: Path) -> None:
    folder = copied(tmp_path, "llama_scope/r1_distill")
    path = next(folder.rglob("*.safetensors"))
    save_file({name: each for name, each in load_file(path).items() if "norm" not in name}, path)
    assert [(q.field, q.default) for q in detect(folder).questions] == [("input_scale", 1.0)]
    assert load(folder, input_scale=0.5).cfg.output_scale == 2
    assert "1 is assumed" in detect(folder).notes[0] and not detect(folder, input_scale=0.5).notes


def test_qwen_scopes_k_is_in_its_repositorys_name(tmp_path: Path) -> None:
    wanted = expected("qwen_scope/topk")
    folder = copied(tmp_path, "qwen_scope/topk", "Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_16")
    assert_equals(load(folder), wanted, 1e-6)
    assert (detect(folder).lm_name, detect(folder).hook_name) == ("Qwen/Qwen3-1.7B-Base", "blocks.0.hook_resid_post")
    with pytest.raises(CheckpointError, match="name of its repository alone: give k") as refused:
        load(FIXTURES / "qwen_scope/topk")
    assert refused.value.question is not None and refused.value.question.field == "k"
    assert_equals(load(FIXTURES / "qwen_scope/topk", k=16), wanted, 1e-6)


def test_a_bare_state_dict_may_be_corrected(tmp_path: Path) -> None:
    state = torch.load(next((FIXTURES / "connor_rob_hook_z/standard").glob("*.pt")), weights_only=True)
    torch.save(state, tmp_path / "25.pt")
    assert "is assumed" in detect(tmp_path).notes[0]
    sae = load(tmp_path, architecture="topk", k=4, subtract_b_dec=False)
    assert int(sae.encode(torch.ones(1, 64)).counts()) <= 4 and not sae.cfg.subtract_b_dec
    with pytest.raises(CheckpointError, match="do not say k"):
        load(tmp_path, architecture="topk")


def test_a_run_of_2024_and_of_gpt2_are_read_by_the_folders_name(tmp_path: Path) -> None:
    source = FIXTURES / "sparsify/topk/layers.3"
    for module in ("h.3.mlp", "embed_tokens", "layers.3"):
        shutil.copytree(source, tmp_path / module / module)
    cfg = {"expansion_factor": 4, "normalize_decoder": True, "num_latents": 0, "k": 16, "signed": False, "d_in": 64}
    (tmp_path / "layers.3/layers.3/cfg.json").write_text(json.dumps(cfg))
    assert detect(tmp_path / "h.3.mlp").hook_name == "blocks.3.hook_mlp_out"
    assert detect(tmp_path / "embed_tokens").hook_name is None
    sae = load(tmp_path / "layers.3")
    assert sae.cfg.hook_name == "blocks.3.hook_resid_post"
    assert_equals(sae, expected("sparsify/topk"), 1e-6)


def test_one_hook_point_of_a_run_must_be_chosen(tmp_path: Path) -> None:
    run = copied(tmp_path, "sparsify/topk")
    shutil.copytree(run / "layers.3", run / "layers.4")
    with pytest.raises(CheckpointError, match="2 checkpoints here") as refused:
        detect(run)
    assert refused.value.question is not None
    names = [name for name, _ in refused.value.question.choices]
    assert names == ["layers.3/sae.safetensors", "layers.4/sae.safetensors"]
    found = detect(run, file=names[1])
    assert (found.hook_name, found.lm_name) == ("blocks.4.hook_resid_post", "HuggingFaceTB/SmolLM2-135M")


def both_sides(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Activations with their signs, as the library gives them."""
    positive, negative = sae.encode_dense(x).chunk(2, dim=1)
    return positive - negative


def test_activations_of_two_signs_become_two_latents() -> None:
    sae, wanted = load(FIXTURES / "saelens/abstopk"), expected("saelens/abstopk")
    found = detect(FIXTURES / "saelens/abstopk")
    assert (sae.cfg.architecture, sae.cfg.k, sae.cfg.d_sae, found.d_sae) == ("topk", 16, 512, 512)
    assert "number i + 256" in found.notes[0]
    assert torch.equal(both_sides(sae, wanted["x"]), wanted["acts"]) and bool((wanted["acts"] < 0).any())
    torch.testing.assert_close(sae.decode(sae.encode(wanted["x"])), wanted["recon"], rtol=1e-5, atol=1e-5)
    assert_fused(sae, wanted["x"])


def test_a_signed_sparsify_checkpoint_keeps_the_largest_of_either_sign(tmp_path: Path) -> None:
    folder = copied(tmp_path, "sparsify/topk")
    path = folder / "layers.3/cfg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"signed": True}))
    weights, x = load_file(folder / "layers.3/sae.safetensors"), expected("sparsify/topk")["x"]
    pre_acts = (x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    kept = torch.zeros_like(pre_acts).scatter_(1, pre_acts.abs().topk(16).indices, 1)
    torch.testing.assert_close(both_sides(load(folder), x), pre_acts * kept, rtol=1e-5, atol=1e-5)


def test_a_transcoder_of_transcoder_circuits_subtracts_its_first_bias(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (8, 24), "b_enc": (24,), "W_dec": (24, 6), "b_dec": (8,), "b_dec_out": (6,)}
    state = {name: torch.randn(*size, generator=g) for name, size in sizes.items()}
    cfg = {"hook_point": "blocks.5.ln2.hook_normalized", "out_hook_point": "blocks.5.hook_mlp_out"}
    torch.save({"cfg": cfg, "state_dict": state}, tmp_path / "final.pt")
    sae, x = load(tmp_path), torch.randn(9, 8, generator=g)
    assert (sae.cfg.hook_name, sae.cfg.hook_name_out) == (cfg["hook_point"], cfg["out_hook_point"])
    acts = ((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]).relu()
    torch.testing.assert_close(sae.encode_dense(x), acts, rtol=1e-5, atol=1e-5)
    recon = acts @ state["W_dec"] + state["b_dec_out"]
    torch.testing.assert_close(sae.decode(sae.encode(x)), recon, rtol=1e-5, atol=1e-5)


def test_a_layer_of_a_cross_layer_transcoder_needs_its_decoder_and_says_what_it_is(tmp_path: Path) -> None:
    folder = copied(tmp_path, "mntss_clt/layer2")
    assert "writes to 3 layers" in str(load(folder).cfg.metadata["note"])
    (folder / "W_dec_2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="W_dec_2.safetensors is missing"):
        load(folder)


def test_a_circuit_tracer_transcoder_may_have_thresholds_and_a_skip_connection(tmp_path: Path) -> None:
    folder = copied(tmp_path, "mwhanna_transcoder/relu")
    weights, x = load_file(folder / "layer_3.safetensors"), expected("mwhanna_transcoder/relu")["x"]
    W_skip = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    threshold = torch.full((256,), 0.7)
    save_file(weights | {"W_skip": W_skip, "activation_function.threshold": threshold}, folder / "layer_3.safetensors")
    pre_acts = x @ weights["W_enc"].T + weights["b_enc"]
    acts = torch.where(pre_acts > 0.7, pre_acts, 0)
    recon = acts @ weights["W_dec"] + weights["b_dec"] + x @ W_skip.T
    assert_equals(load(folder), {"x": x, "acts": acts, "recon": recon}, 1e-6)


def test_crosscoders_and_temporal_saes_are_refused_by_name(tmp_path: Path) -> None:
    zeros = torch.zeros
    refused = {
        "crosscoder of 2 layers or models": {"W_enc": zeros(2, 8, 24), "W_dec": zeros(24, 2, 8), "b_enc": zeros(24)},
        "crosscoder of 3 layers": {"encoder.weight": zeros(3, 8, 24), "decoder.weight": zeros(3, 24, 8)},
        "crosscoder of 4 hook points": {"W_E": zeros(4, 8, 24), "W_D": zeros(4, 24, 8), "b_E": zeros(4, 24)},
        "temporal SAE": {"D": zeros(24, 8), "b": zeros(8), "attn_layers.0.c_proj.bias": zeros(24)},
    }
    for i, (message, state) in enumerate(refused.items()):
        (tmp_path / str(i)).mkdir()
        save_file(state, tmp_path / str(i) / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path / str(i))


def test_a_crosscoder_of_one_hook_point_is_an_sae(tmp_path: Path) -> None:
    folder = copied(tmp_path, "lm_saes/topk")
    path = folder / "sae_weights.safetensors"
    weights = load_file(path)
    save_file({name: each if each.ndim == 0 else each[None] for name, each in weights.items()}, path)
    assert_equals(load(folder), expected("lm_saes/topk"), 1e-6)


def test_the_identity_stays_when_only_the_folders_name_is_lost(tmp_path: Path) -> None:
    """What an import has found in the path is given with the next load, from wherever the files lie then."""
    named = copied(tmp_path, "qwen_scope/topk", "Qwen--SAE-Res-Qwen3-1.7B-Base-W32K-L0_16")
    moved = copied(tmp_path, "qwen_scope/topk", "elsewhere")
    (moved / "layer0.sae.pt").rename(moved / "weights")
    sae = load(named)
    assert load(moved, hook_name=sae.cfg.hook_name, k=sae.cfg.k).identity() == sae.identity()
    run = copied(tmp_path, "sparsify/skip_transcoder", "run")
    sae = load(run)
    hooks = {"hook_name": sae.cfg.hook_name, "hook_name_out": sae.cfg.hook_name_out}
    (run / "layers.3.mlp").rename(run / "x")
    assert load(run, **hooks).identity() == sae.identity()


def test_scales_are_those_of_the_average_norms() -> None:
    cfg = load(FIXTURES / "lm_saes/transcoder_topk").cfg
    assert math.isclose(cfg.input_scale, 8 / 18, rel_tol=1e-6)
    assert cfg.output_scale != 1 / cfg.input_scale
