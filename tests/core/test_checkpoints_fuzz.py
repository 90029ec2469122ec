"""Whatever a stranger uploads, it is an SAE or a sentence: bytes, settings and names drawn at random."""

from __future__ import annotations

import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from sae_backend.core.checkpoints import FORMATS, CheckpointError, checks, detect, load

SECONDS = 6.0
"""Of each test here; once they are over, what is still drawn is not read."""
QUICK = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
D, F = 4, 6
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


class Budget:
    """Time left for one test, over all that is drawn for it."""

    def __init__(self) -> None:
        self.ends = time.monotonic() + SECONDS

    def over(self) -> bool:
        return time.monotonic() > self.ends


@pytest.fixture(scope="function")
def budget() -> Budget:
    gc.collect()  # what earlier tests left open would be warned of where every warning is an error
    return Budget()


def assert_read_or_refused(folder: Path, **options: Any) -> None:
    """Both ways of reading end, in an SAE that computes or in a sentence that may be shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (detect, load):
            try:
                found = read(folder, max_bytes=1 << 20, **options)
            except CheckpointError as error:
                assert str(error).endswith(".") and str(error).isprintable() and len(str(error)) < 2000
            else:
                if read is load:
                    assert found.encode(torch.ones(2, found.cfg.d_in)).shape == (2, found.cfg.d_sae)
                    checks.static(found)


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: torch.randn(*size, generator=g) for name, size in sizes.items()} | changes


def linear() -> dict[str, Any]:
    weights = tensors()
    return {
        "encoder.weight": weights["W_enc"].T.contiguous(), "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(), "b_dec": weights["b_dec"], "k": torch.tensor(2),
        "threshold": torch.tensor(0.5),
    }  # fmt: skip


CFG = {"architecture": "jumprelu", "d_in": D, "d_sae": F, "metadata": {"hook_name": "a.b"}}


def good(folder: Path) -> dict[str, Callable[[], bytes]]:
    """One file of each container, and what reads as a checkpoint in it."""
    path = folder / "made"

    def torch_file(state: Any) -> bytes:
        torch.save(state, path)
        return path.read_bytes()

    def npz(pack: Callable[..., None]) -> bytes:
        with path.open("wb") as file:
            pack(file, **{name: each.numpy() for name, each in tensors(threshold=torch.ones(F)).items()})
        return path.read_bytes()

    return {
        "safetensors": lambda: save(tensors(threshold=torch.ones(F))),
        "torch": lambda: torch_file(linear()),
        "wrapped torch": lambda: torch_file({"cfg": CFG, "state_dict": tensors(threshold=torch.ones(F))}),
        "npz": lambda: npz(np.savez),
        "compressed npz": lambda: npz(np.savez_compressed),
    }


@lru_cache
def bytes_of(container: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return good(Path(folder))[container]()


CONTAINERS = ["safetensors", "torch", "wrapped torch", "npz", "compressed npz"]
EDITS = st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["set", "insert", "remove", "cut"]), st.binary(max_size=4)),
                 min_size=1, max_size=4)  # fmt: skip


def edited(original: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    data = bytearray(original)
    for place, what, new in edits:
        at = int(place * len(data))
        if what == "cut":
            del data[at:]
        else:
            data[at : at + (0 if what == "insert" else len(new) or 1)] = b"" if what == "remove" else new
    return bytes(data)


@QUICK
@given(st.sampled_from(CONTAINERS), EDITS)
def damaged(budget: Budget, folder: Path, container: str, edits: list[tuple[float, str, bytes]]) -> None:
    if not budget.over():
        (folder / "sae").write_bytes(edited(bytes_of(container), edits))
        assert_read_or_refused(folder)


def test_files_with_changed_bytes_are_read_or_refused(tmp_path: Path, budget: Budget) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps(CFG))
    damaged(budget, tmp_path)


def test_the_files_before_their_bytes_are_changed_are_read(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps(CFG))
    for container in CONTAINERS:
        (tmp_path / "sae").write_bytes(bytes_of(container))
        assert load(tmp_path).cfg.d_sae == F, container


SETTINGS = [
    "architecture", "d_in", "d_sae", "d_out", "k", "activation_fn_str", "activation_fn",
    "activation_fn_kwargs", "metadata", "apply_b_dec_to_input", "normalize_activations",
    "rescale_acts_by_decoder_norm", "hook_point", "hook_point_layer", "hook_name", "hook_name_out",
    "hook_head_index", "model_name", "activation", "transcode", "signed", "trainer", "buffer", "hook_point_in",
    "hook_point_out", "act_fn", "jump_relu_threshold", "dataset_average_activation_norm",
    "sparsity_include_decoder_norm", "top_k", "norm_activation", "sae_type", "hook_points", "use_glu_encoder",
    "act_name", "hf_hook_point_in", "hf_hook_point_out", "scaling_factor", "has_whitening", "model", "lm_name",
    "layer", "submodule_name", "dict_class", "io", "ctx_len", "in", "out", "norm_factor",
]  # fmt: skip
USUAL = [
    "standard", "topk", "gated", "abstopk", "jumprelu", "transcoder", "batchtopk", "relu", "none",
    "layer_norm", "dataset-wise", "expected_average_only_in", "BatchTopKSAE", "resid_post_layer_3",
    "blocks.1.hook_resid_post", "sae", "crosscoder", True, False, None, 0, 1, 2, 2.5, D, F, [], {}, {"k": 2},
    {"in": 3.0, "out": 4.0}, {"layer": 3, "lm_name": "gpt2"},
]  # fmt: skip
VALUES = st.sampled_from(USUAL) | JSON
CONFIGS = st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=8)
KINDS = ["saelens", "sparsify", "dictionary_learning", "llama_scope", "lm_saes", "gemma_scope_2", "circuit_tracer"]
FILES = ["cfg.json", "config.json", "hyperparams.json", "activation_scaler.json", "runner_cfg.json", "sae_cfg.json"]


def weights_of(kind: str) -> dict[str, torch.Tensor]:
    plain, dense = tensors(threshold=torch.ones(F)), linear()
    if kind == "sparsify":
        return {name: dense[name] for name in ("encoder.weight", "encoder.bias", "b_dec")} | {"W_dec": plain["W_dec"]}
    if kind == "dictionary_learning":
        return dense
    if kind == "llama_scope":
        dense = {name: dense[name] for name in ("encoder.weight", "encoder.bias", "decoder.weight")}
        return dense | {"decoder.bias": plain["b_dec"]}
    if kind == "lm_saes":
        names = {"W_enc": "W_E", "b_enc": "b_E", "W_dec": "W_D", "b_dec": "b_D"}
        norm = {"dataset_average_activation_norm.a": torch.tensor(2.0)}
        return {new: plain[name] for name, new in names.items()} | norm
    if kind == "gemma_scope_2":
        return {name.replace("W_", "w_"): each for name, each in plain.items()}
    if kind == "circuit_tracer":
        return plain | {"W_enc": plain["W_enc"].T.contiguous()}
    return plain


@QUICK
@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(FILES), CONFIGS, min_size=1, max_size=3))
@example("saelens", {"cfg.json": {"architecture": "jumprelu", "d_in": D}})
def configured(budget: Budget, folder: Path, kind: str, configs: dict[str, dict[str, Any]]) -> None:
    if budget.over():
        return
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    save_file(weights_of(kind), folder / "sae.safetensors")
    for name, config in configs.items():
        usual = {"architecture": "jumprelu", "d_in": D} if (kind, name) == ("saelens", "cfg.json") else {}
        (folder / name).write_text(json.dumps(usual | config))
    assert_read_or_refused(folder)


def test_random_settings_are_read_or_refused(tmp_path: Path, budget: Budget) -> None:
    configured(budget, tmp_path)


NAMES = [
    "W_enc", "b_enc", "W_dec", "b_dec", "threshold", "log_threshold", "topk_threshold", "W_skip", "b_gate",
    "r_mag", "b_mag", "scaling_factor", "b_dec_out", "encoder.weight", "encoder.bias", "decoder.weight",
    "decoder.bias", "bias", "k", "group_sizes", "decoder_bias", "gate_bias", "mag_bias", "pre_bias",
    "latent_bias", "activation", "activation_state_dict", "W_E", "b_E", "W_D", "b_D", "W_E_glu", "b_E_glu",
    "w_enc", "w_dec", "affine_skip_connection", "log_jumprelu_threshold", "encoder_linear.weight",
    "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias", "W_enc_2", "W_dec_2", "b_enc_2",
    "b_dec_2", "activation_mean", "activation_std", "activation_global_scale", "attn_layers.0.x", "cfg",
    "state_dict", "ae", "norm_factor",
]  # fmt: skip
FAMILIES = [
    ["W_enc", "b_enc", "W_dec", "b_dec"], ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"],
    ["encoder.weight", "encoder.bias", "decoder.weight"], ["encoder.weight", "encoder.bias", "W_dec", "b_dec"],
    ["pre_bias", "latent_bias", "encoder.weight"], ["W_E", "b_E", "W_D", "b_D"],
    ["w_enc", "b_enc", "w_dec", "b_dec", "threshold"],
    ["encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"],
    ["W_enc_2", "b_enc_2"],
    ["encoder.weight", "decoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder_bias"], [],
]  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]
USUAL_SHAPES = [(D, F), (F, D), (F,), (D,), (D, D), (), (1,), (0,), (2, D, F), (F, 2, D), (1, D, F)]
SHAPES = st.sampled_from(USUAL_SHAPES) | st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.sampled_from(FAMILIES)) + draw(st.lists(st.sampled_from(NAMES), max_size=3))
    state: dict[str, Any] = {}
    for name in names:
        dtype = draw(st.sampled_from([torch.float32] * 9 + DTYPES))
        drawn = torch.randn(draw(SHAPES), generator=torch.Generator().manual_seed(len(state)))
        odd = draw(st.sampled_from([None, 3, "TopK", [1], {"k": 2}]))
        state[name] = drawn.to(dtype) if draw(st.integers(0, 9)) else odd
    return state


@QUICK
@given(states(), st.booleans(), st.sampled_from([None, *FORMATS]), st.sampled_from([None, "state_dict", "ae"]))
def named(
    budget: Budget, folder: Path, state: dict[str, Any], as_torch: bool, fmt: str | None, inside: str | None
) -> None:
    if budget.over():
        return
    if as_torch:
        torch.save({inside: state, "cfg": CFG, "norm_factor": 2.0} if inside else state, folder / "sae")
    else:
        save_file({name: each for name, each in state.items() if isinstance(each, torch.Tensor)}, folder / "sae")
    assert_read_or_refused(folder, format=fmt)


def test_random_names_shapes_and_dtypes_are_read_or_refused(tmp_path: Path, budget: Budget) -> None:
    named(budget, tmp_path)


@QUICK
@given(st.dictionaries(st.sampled_from(["k", "hook_name", "input_scale", "architecture", "turned", "file"]), JSON))
def corrected(budget: Budget, folder: Path, options: dict[str, Any]) -> None:
    if not budget.over():
        assert_read_or_refused(folder, **options)


def test_random_corrections_are_taken_or_refused(tmp_path: Path, budget: Budget) -> None:
    (tmp_path / "cfg.json").write_text(json.dumps(CFG))
    (tmp_path / "sae").write_bytes(bytes_of("safetensors"))
    corrected(budget, tmp_path)
