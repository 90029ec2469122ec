"""OpenMOSS' lm-saes, now llamascopium: config.json and sae_weights.safetensors, W_E [d d_sae], W_D, b_E, b_D.

xs = x * sqrt(d) / norm_in; pre = xs @ W_E + b_E [* sigmoid(xs @ W_E_glu + b_E_glu)]; acts = relu, top k or jumprelu,
which compares pre * |W_D row| where sparsity_include_decoder_norm; recon = (acts @ W_D + b_D) * norm_out / sqrt(d).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import folding, settings
from .assembling import Draft, sizes_of, tensors_of
from .errors import CheckpointError
from .files import Source

NAMES = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec", "W_E_glu": "W_glu", "b_E_glu": "b_glu"}
LOG = "activation_function.log_jumprelu_threshold"
NORM = "dataset_average_activation_norm."
ACTIVATIONS = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
KINDS = {"sae": "sae", "crosscoder": "crosscoder"}
SCALED = {"dataset-wise": "scaled", "inference": "none", "none": "none", None: "scaled", "token-wise": "token"}
CROSSCODER = (
    "This is a crosscoder of {} hook points: each latent adds up what all of them say, so none has its activations. "
    "Give an SAE or transcoder of a single hook point."
)


def recognises(source: Source) -> bool:
    """Say whether encoder and decoder are called W_E and W_D."""
    return source.has("W_E", "W_D", "b_E")


def draft(source: Source) -> Draft:
    """Return what the weights and config.json say."""
    cfg = source.beside("config.json") or {}
    settings.choice(cfg.get("sae_type", "sae"), "sae_type", KINDS)
    found = Draft("lm_saes", "standard", _tensors(source))
    _set_hooks(found, cfg)
    _set_selection(found, cfg, source)
    _set_scales(found, cfg, source)
    found.metadata = settings.plain(
        {name: cfg.get(name) for name in ("sae_type", "expansion_factor", "norm_activation")}
    )
    return found


def _tensors(source: Source) -> dict[str, Tensor]:
    """Return the tensors under this project's names; a crosscoder of one hook point is an SAE."""
    weights = {name: value for name, value in source.weights.items() if not name.startswith(NORM)}
    optional = {"b_D", "W_E_glu", "b_E_glu", LOG}
    tensors = {
        NAMES.get(name, name): each
        for name, each in tensors_of(weights, {"W_E", "b_E", "W_D"}, optional, "an lm-saes SAE").items()
    }
    if tensors["W_enc"].ndim == 3:
        if (heads := tensors["W_enc"].shape[0]) != 1:
            raise CheckpointError(CROSSCODER.format(heads))
        tensors = {name: each if name == LOG and each.ndim == 1 else each[0] for name, each in tensors.items()}
    if "b_dec" not in tensors:
        tensors["b_dec"] = tensors["W_dec"].new_zeros(tensors["W_dec"].shape[-1])
    if LOG in tensors:
        tensors["threshold"] = tensors.pop(LOG).float().exp()
    return tensors


def _set_hooks(found: Draft, cfg: Mapping[str, Any]) -> None:
    points = cfg.get("hook_points")
    only = points[0] if isinstance(points, list) and len(points) == 1 else None
    found.hook_name = settings.hook(cfg.get("hook_point_in", only), "hook_point_in")
    writes = settings.hook(cfg.get("hook_point_out"), "hook_point_out")
    found.hook_name_out = None if writes == found.hook_name else writes


def _set_selection(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    unnamed = "jumprelu" if "threshold" in found.tensors else "relu"
    found.architecture = settings.choice(cfg.get("act_fn", unnamed), "act_fn", ACTIVATIONS)  # type: ignore[assignment]
    if "act_fn" not in cfg:
        found.ask("architecture", "The files do not say how latents are chosen; config.json does.", found.architecture)
    if source.said.architecture in ACTIVATIONS.values():
        found.architecture = source.said.architecture  # type: ignore[assignment]
    by_norm = settings.flag(cfg.get("sparsity_include_decoder_norm", True), "sparsity_include_decoder_norm")
    if found.architecture == "topk":
        found.take_k(cfg.get("top_k"), source)
        found.rank_by_decoder_norm = by_norm
    if found.architecture != "jumprelu":
        found.tensors.pop("threshold", None)
    elif by_norm:
        found.folds.append(folding.threshold_by_decoder_norm)


def _set_scales(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Set the constant factors from the average norms beside the weights."""
    how = settings.choice(cfg.get("norm_activation"), "norm_activation", SCALED)
    if how == "token":
        found.input_norm = "constant_norm"
        return
    if how == "none" or source.said.input_scale is not None:
        return
    norms = {name.removeprefix(NORM): float(each) for name, each in source.weights.items() if _is_norm(name, each)}
    norm_in = norms.get(found.hook_name or "") or (next(iter(norms.values())) if len(norms) == 1 else None)
    if norm_in is None:
        text = "The files do not say by how much inputs were scaled in training; 1 is assumed."
        found.notes.append(text)
        found.ask("input_scale", text, default=1.0)
        return
    root = math.sqrt(sizes_of(found.tensors)[0])
    norm_out = norms.get(found.hook_name_out or "", norm_in)
    found.input_scale = root / settings.number(norm_in, NORM)
    found.output_scale = settings.number(norm_out, NORM) / root if norm_out != norm_in else None


def _is_norm(name: str, value: Any) -> bool:
    return name.startswith(NORM) and isinstance(value, Tensor) and value.numel() == 1
