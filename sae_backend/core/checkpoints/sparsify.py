"""EleutherAI sparsify (before 2025: sae): <run>/<hook point>/{cfg.json, sae.safetensors}, <run>/config.json.

acts = top k of relu((x - b_dec) @ W.T + b), or the largest of each of k groups; a transcoder does not subtract b_dec.
recon = acts @ W_dec + b_dec [+ x @ W_skip.T]. W_dec has a row per latent, though the encoder is an nn.Linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import hooks, settings
from .assembling import Draft, flipped, tensors_of
from .files import Source

KEYS = {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
ACTIVATIONS = {"topk": "topk", "groupmax": "groupmax"}


def recognises(source: Source) -> bool:
    """Say whether an nn.Linear encoder stands beside a bare decoder."""
    return source.has(*KEYS)


def draft(source: Source) -> Draft:
    """Return what the weights, cfg.json and the run's config.json say; the hook point is the folder's name."""
    cfg, run = source.beside("cfg.json") or {}, source.above("config.json") or {}
    transcode = settings.flag(cfg.get("transcode", False), "transcode")
    signed = settings.flag(cfg.get("signed", False), "signed")
    kept = settings.choice(cfg.get("activation", "topk"), "activation", ACTIVATIONS)
    found = Draft("sparsify", "groupmax" if kept == "groupmax" else "topk", _tensors(source))
    found.subtract_b_dec, found.transcoder, found.two_sided = True, transcode, signed
    found.take_k(cfg.get("k"), source)
    found.model_name = settings.text(cfg.get("model_name", run.get("model")), "model")
    _set_hooks(found, cfg, source)
    run_settings = {name: value for name, value in run.items() if name in ("dataset", "ctx_len", "split")}
    found.metadata = settings.plain(run_settings | {"normalize_decoder": cfg.get("normalize_decoder")})
    return found


def _tensors(source: Source) -> dict[str, Tensor]:
    weights = tensors_of(source.weights, KEYS, {"W_skip"}, "a sparsify checkpoint")
    tensors = {
        "W_enc": flipped(weights["encoder.weight"], "encoder.weight"),
        "b_enc": weights["encoder.bias"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    return tensors | ({"W_skip": flipped(weights["W_skip"], "W_skip")} if "W_skip" in weights else {})


def _set_hooks(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Take the hook points from the folder, a module's name; a transcoder reads that module's input."""
    module = source.trail.split("/")[-2]
    written = hooks.of_module(module, "out", found.model_name)
    found.hook_name, found.hook_name_out = written, None
    if found.transcoder:
        found.hook_name, found.hook_name_out = hooks.of_module(module, "in", found.model_name), written
    found.hook_name = settings.hook(cfg.get("hook_name"), "hook_name") or found.hook_name
    found.hook_name_out = settings.hook(cfg.get("hook_name_out"), "hook_name_out") or found.hook_name_out
