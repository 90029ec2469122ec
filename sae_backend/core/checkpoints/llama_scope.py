"""Llama Scope: hyperparams.json and checkpoints/final.safetensors; its R1 distillation: config.json and sae_weights.

With s = sqrt(d) / average norm: pre = (s * x) @ W_enc + b_enc; acts = pre where pre * |W_dec row| > s * threshold;
recon = (acts @ W_dec + b_dec) / s_out. R1's thresholds are of pre_acts * |W_dec row| themselves, one for each latent,
as logarithms. SAELens shows these activations too; the original library divides them by s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from . import folding, settings
from .assembling import Draft, flipped, sizes_of, tensors_of
from .errors import CheckpointError
from .files import Source

KEYS = {"encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"}
LOG = "log_jumprelu_threshold"
NORM = "dataset_average_activation_norm"
ACTIVATIONS = {"jumprelu": "jumprelu", "relu": "standard", "topk": "topk"}
MODEL = "Llama3_1-8B-Base"
NO_NORM = "The files do not say by how much inputs were scaled in training; 1 is assumed."


def recognises(source: Source) -> bool:
    """Say whether two nn.Linear stand beside hyperparams.json, or beside logarithms of thresholds."""
    return source.has(*KEYS) and (source.has(LOG) or source.above("hyperparams.json") is not None)


def draft(source: Source) -> Draft:
    """Return what the weights and the configuration say."""
    cfg = source.above("hyperparams.json") or source.beside("config.json") or {}
    if cfg.get("use_glu_encoder") or cfg.get("apply_decoder_bias_to_pre_encoder"):
        raise CheckpointError("Llama Scope's GLU encoders and pre-encoder biases are not supported; none is published.")
    found = Draft("llama_scope", "jumprelu", _tensors(source))
    _set_hooks(found, cfg)
    found.model_name = "meta-llama/Llama-3.1-8B" if MODEL in source.trail else None
    _set_scales(found, cfg, source)
    _set_selection(found, cfg, source)
    found.metadata = settings.plain(
        {name: cfg.get(name) for name in ("sae_type", "expansion_factor", "norm_activation")}
    )
    return found


def _tensors(source: Source) -> dict[str, Tensor]:
    weights = {name: value for name, value in source.weights.items() if not name.startswith(f"{NORM}.")}
    weights = tensors_of(weights, KEYS, {LOG}, "a Llama Scope SAE")
    tensors = {
        "W_enc": flipped(weights["encoder.weight"], "encoder.weight"),
        "b_enc": weights["encoder.bias"],
        "W_dec": flipped(weights["decoder.weight"], "decoder.weight"),
        "b_dec": weights["decoder.bias"],
    }
    return tensors | ({"threshold": weights[LOG].float().exp()} if LOG in weights else {})


def _set_hooks(found: Draft, cfg: Mapping[str, Any]) -> None:
    reads = settings.hook(cfg.get("hook_point_in"), "hook_point_in")
    writes = settings.hook(cfg.get("hook_point_out"), "hook_point_out")
    found.hook_name, found.hook_name_out = reads, None if writes == reads else writes


def _set_scales(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Set the constant factors from the average norms, which are in the configuration or beside the weights."""
    if source.said.input_scale is not None:
        return
    norms = cfg.get(NORM)
    norms = norms if isinstance(norms, dict) else {}
    root = math.sqrt(sizes_of(found.tensors)[0])
    norm_in = _norm(norms.get("in"), source.weights.get(f"{NORM}.{cfg.get('hook_point_in')}"))
    norm_out = _norm(norms.get("out"), source.weights.get(f"{NORM}.{cfg.get('hook_point_out')}")) or norm_in
    if norm_in is None or norm_out is None:
        found.notes.append(NO_NORM)
        found.ask("input_scale", NO_NORM, default=1.0)
    else:
        found.input_scale = root / norm_in
        found.output_scale = norm_out / root if norm_out != norm_in else None


def _norm(written: Any, stored: Any) -> float | None:
    if isinstance(stored, Tensor) and stored.numel() == 1:
        written = float(stored)
    return None if written is None else settings.number(written, NORM)


def _set_selection(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Set thresholds or k; all are of pre_acts * |W_dec row| unless the configuration says otherwise."""
    written = settings.choice(cfg.get("act_fn", "jumprelu"), "act_fn", ACTIVATIONS)
    by_norm = settings.flag(cfg.get("sparsity_include_decoder_norm", True), "sparsity_include_decoder_norm")
    if "threshold" not in found.tensors and written == "jumprelu":
        level = cfg.get("jump_relu_threshold", 0.0)
        level = settings.number(level, "jump_relu_threshold") if level else 0.0
        level *= source.said.input_scale or found.input_scale
        found.tensors["threshold"] = torch.full((found.tensors["b_enc"].numel(),), level)
    elif "threshold" not in found.tensors:
        found.architecture = "topk" if written == "topk" else "standard"
    if found.architecture == "topk":
        found.take_k(cfg.get("top_k"), source)
        found.rank_by_decoder_norm = by_norm
    elif by_norm and found.architecture == "jumprelu":
        found.folds.append(folding.threshold_by_decoder_norm)
