"""SAELens folders, version 0.7 to 6: cfg.json, sae_weights.safetensors and sidecars that change the result.

Three layouts of cfg.json: v6 has a `metadata` object; v3 to v5 are flat with hook_name; before that it is the
whole runner configuration, with hook_point. What can be folded into the weights exactly is folded, as SAELens
itself does before it saves a final model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import folding, settings
from .assembling import Draft, flipped, tensors_of
from .errors import CheckpointError
from .files import Source

CFG = "cfg.json"
BASE = {"W_enc", "b_enc", "W_dec", "b_dec"}
GATES = {"b_gate", "r_mag", "b_mag"}
SCALES = ("scaling_factor", "finetuning_scaling_factor")
TRANSCODERS = {
    "transcoder": "standard",
    "skip_transcoder": "standard",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
ARCHITECTURES = {
    "standard": "standard",
    "topk": "topk",
    "abstopk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "batchtopk",
    "matryoshka_batchtopk": "batchtopk",
} | TRANSCODERS
REFUSED = {
    "matching_pursuit": "it has no encoder: its latents are chosen one after another",
    "temporal": "its latents depend on the whole context, not on one token",
}
ACTIVATIONS = {None: "", "relu": "", "tanh-relu": "tanh_relu", "topk": "topk"}
INPUT_NORMS = {
    False: "none",
    None: "none",
    "none": "none",
    True: "expected_average_only_in",
    "expected_average_only_in": "expected_average_only_in",
    "covariance_whitening": "covariance_whitening",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
NOT_METADATA = {
    "d_in",
    "d_sae",
    "d_out",
    "k",
    "model_name",
    "hook_name",
    "hook_name_out",
    "hook_point",
    "architecture",
}
FROM_RUNNER = ("training_tokens", "dataset_path", "context_size", "prepend_bos", "seed")
SCALE = (
    "Inputs were scaled in training by a factor that is not in the files, unless it was folded before saving: "
    "sqrt(d_in) divided by the mean length of the hidden states."
)
CENTRED_AT = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "hook_attn_out")
CENTRED = (
    "TransformerLens may have centred what models with LayerNorm, such as GPT-2, write into the residual stream when "
    "this SAE was trained (center_writing_weights): then each input's mean is to be taken off."
)
NOT_FOLDED = "The factor its inputs were scaled with in training is not in the file; 1 is assumed."


def recognises(source: Source) -> bool:
    """Say whether there are a cfg.json and weights under SAELens' names, in no format that shares either."""
    if not source.has("W_dec") and not source.has("W_enc"):
        return False
    if source.has("encoder.weight") or source.has("b_dec_out"):
        return False
    cfg = _cfg(source)
    return cfg is not None and ("architecture" in cfg or "d_in" in cfg)


def _cfg(source: Source) -> dict[str, Any] | None:
    """Return cfg.json, or the configuration that until version 2 was pickled beside the weights."""
    pickled = source.around.get("cfg")
    return pickled if isinstance(pickled, dict) else source.beside(CFG)


def draft(source: Source) -> Draft:
    """Return what the files say, or which architecture or setting cannot be read."""
    cfg = _cfg(source) or {}
    written = _architecture(cfg)
    found = Draft("saelens", _computed_as(written, cfg), {}, subtract_b_dec=_subtracts(written, cfg))
    found.transcoder, found.two_sided = written in TRANSCODERS, written == "abstopk"
    _describe(found, cfg, source)
    found.tensors = _tensors(found.architecture, written, source.weights)
    _check_sizes(cfg, found.tensors)
    if found.architecture == "topk":
        _set_k(found, cfg, source)
    folding.fold_factors(found.tensors, SCALES)
    if settings.flag(cfg.get("rescale_acts_by_decoder_norm", False), "rescale_acts_by_decoder_norm"):
        found.folds.append(folding.fold_decoder_norm)
    _normalise_input(found, cfg, source)
    return found


def _architecture(cfg: Mapping[str, Any]) -> str:
    """Return the architecture as written; before 3.0 it was not written and always standard."""
    written = cfg.get("architecture", "standard")
    if isinstance(written, str) and written in REFUSED:
        raise CheckpointError(f"The architecture {written} is not supported: {REFUSED[written]}.")
    settings.choice(written, "architecture", ARCHITECTURES)
    return str(written)


def _computed_as(written: str, cfg: Mapping[str, Any]) -> Any:
    """Return this project's architecture; until v5 a standard SAE could carry another activation function."""
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn"))
    translated = settings.choice(activation, "activation_fn", ACTIVATIONS)
    if written == "standard" and translated:
        return translated
    if translated == "tanh_relu":
        raise CheckpointError(f"A {written} SAE with activation function tanh-relu is not supported.")
    return ARCHITECTURES[written]


def _set_k(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    arguments = cfg.get("activation_fn_kwargs")
    found.take_k(cfg.get("k", arguments.get("k") if isinstance(arguments, dict) else None), source)


def _subtracts(written: str, cfg: Mapping[str, Any]) -> bool:
    """Return whether b_dec is subtracted from the input; a transcoder's belongs to its output only."""
    return settings.flag(cfg.get("apply_b_dec_to_input", True), "apply_b_dec_to_input") and written not in TRANSCODERS


def _describe(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Set the names and the metadata, from `metadata` in v6 and from cfg.json itself before."""
    about = cfg.get("metadata", cfg) or {}
    if not isinstance(about, dict):
        raise CheckpointError(f"metadata is {settings.shown(about)}; expected an object.")
    head = about.get("hook_head_index", about.get("hook_point_head_index"))
    if head is not None:
        raise CheckpointError(
            f"This SAE reads the single attention head {settings.shown(head)}; only whole points are read."
        )
    found.hook_name = settings.hook(_hook_name(about), "hook_name")
    found.hook_name_out = settings.hook(about.get("hook_name_out"), "hook_name_out")
    found.model_name = settings.text(about.get("model_name"), "model_name")
    runner = source.beside("runner_cfg.json") or {}
    known = {name: runner[name] for name in FROM_RUNNER if name in runner} | about
    found.metadata = settings.plain({name: value for name, value in known.items() if name not in NOT_METADATA})


def _hook_name(about: Mapping[str, Any]) -> Any:
    """Return the hook point; in the days of SAE groups its layer was a placeholder."""
    hook, layer = (
        about.get("hook_name", about.get("hook_point")),
        about.get("hook_point_layer", about.get("hook_layer")),
    )
    return hook.replace("{layer}", str(layer)) if isinstance(hook, str) and isinstance(layer, int) else hook


def _tensors(architecture: str, written: str, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors under this project's names, W_skip the other way round."""
    extra = {"jumprelu": _threshold_name(weights), "batchtopk": {"topk_threshold"}, "gated": GATES}
    required = BASE - ({"b_enc"} if architecture == "gated" else set()) | set(extra.get(architecture, set()))
    skip = {"W_skip"} if "skip" in written else set()
    tensors = tensors_of(weights, required | skip, set(SCALES), f"a SAELens {written} SAE")
    translate: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
        "log_threshold": ("threshold", torch.exp),
        "topk_threshold": ("threshold", lambda threshold: threshold.expand(tensors["b_enc"].numel())),
        "W_skip": ("W_skip", lambda skip: flipped(skip, "W_skip")),
    }
    for name in translate.keys() & tensors.keys():
        new_name, function = translate[name]
        tensors[new_name] = function(tensors.pop(name))
    if architecture == "gated":
        tensors["b_enc"] = torch.zeros_like(tensors["b_gate"])
    return tensors


def _threshold_name(weights: Mapping[str, Any]) -> set[str]:
    return {"log_threshold"} if "log_threshold" in weights and "threshold" not in weights else {"threshold"}


def _check_sizes(cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a cfg.json that belongs to other weights."""
    for setting, tensor in (("d_in", "W_enc"), ("d_sae", "W_enc"), ("d_out", "W_dec")):
        if cfg.get(setting) is None:
            continue
        size, shape = settings.whole(cfg[setting], setting), tuple(tensors[tensor].shape)
        if size not in shape:
            raise CheckpointError(f"cfg.json says {setting} {size}, but {tensor} is {' × '.join(map(str, shape))}.")


def _normalise_input(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Set how inputs are normalised; a checkpoint saved during training keeps the factors beside it."""
    norm = settings.choice(cfg.get("normalize_activations"), "normalize_activations", INPUT_NORMS)
    scaler = source.beside("activation_scaler.json") or {}
    if norm in ("layer_norm", "constant_norm"):
        found.input_norm = "layer_norm" if norm == "layer_norm" else "constant_norm"
    if scaler.get("scaling_factor") is not None:
        found.input_scale = settings.number(scaler["scaling_factor"], "scaling_factor")
    elif scaler.get("has_whitening"):
        found.folds.append(partial(folding.fold_whitening, white=_whitening(source)))
    elif norm in ("expected_average_only_in", "covariance_whitening"):
        if source.said.input_scale is None:
            found.notes.append(NOT_FOLDED)
        if norm == "expected_average_only_in":
            found.ask("input_scale", SCALE, default=1.0)
    elif norm == "none":
        _centre(found, cfg)
    if found.transcoder and (found.input_norm != "none" or found.input_scale != 1.0):
        raise CheckpointError("Transcoders with normalised or scaled inputs are not supported.")


def _centre(found: Draft, cfg: Mapping[str, Any]) -> None:
    """Ask whether inputs were centred, as TransformerLens does by default and SAELens' models were before 3."""
    about = cfg.get("metadata", cfg)
    kwargs = about.get("model_from_pretrained_kwargs") if isinstance(about, dict) else None
    written = kwargs.get("center_writing_weights") if isinstance(kwargs, dict) else None
    where = (found.hook_name or "").endswith(CENTRED_AT)
    if where and not found.transcoder and (written is True or (written is None and "hook_point" in cfg)):
        found.input_norm = "centred" if written is True else "none"
        found.ask("input_norm", CENTRED, default=found.input_norm)


def _whitening(source: Source) -> dict[str, Tensor]:
    """Return mean, matrix and inverse_matrix of activation_whitening.safetensors."""
    keys, name = {"mean", "matrix", "inverse_matrix"}, source.sibling("activation_whitening.safetensors")
    if name not in source.files.paths:
        raise CheckpointError(f"activation_scaler.json asks for {settings.listed([name])}, which is not there; add it.")
    return tensors_of(source.files.weights(name), keys, set(), "a whitening")
