"""Gemma Scope 2: <site>/layer_L_width_W_l0_N/{params.safetensors, config.json}, lower-case names.

As Gemma Scope, plus recon += x @ affine_skip_connection in some transcoders. A layer of a cross-layer transcoder
has w_dec [d_sae, layers it writes to, d].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import hooks, settings
from .assembling import Draft, tensors_of
from .errors import CheckpointError
from .files import Source

KEYS = {"w_enc", "b_enc", "w_dec", "b_dec", "threshold"}
SKIP = "affine_skip_connection"
PLACE = re.compile(r"(resid_post|mlp_out|attn_out|transcoder|clt)(?:_all)?/(?:[^/]*/)*?(?:params_)?layer_(\d+)")
CLT_PLACE = re.compile(r"(clt)(?:_all)?/(?:[^/]*/)*params_layer_(\d+)")
SITES = {
    "resid_post": ("hook_resid_post", None),
    "mlp_out": ("hook_mlp_out", None),
    "attn_out": ("attn.hook_z", None),
    "transcoder": ("mlp.hook_in", "hook_mlp_out"),
    "clt": ("mlp.hook_in", "hook_mlp_out"),
}
CROSS_LAYER = (
    "This layer of a cross-layer transcoder writes to {} layers. Activations are exact; a latent's direction here is "
    "the sum of all it writes, and how well one layer's output is reconstructed from this layer alone means nothing."
)


def recognises(source: Source) -> bool:
    """Say whether the five names are there, in lower case."""
    return source.has(*KEYS)


def draft(source: Source) -> Draft:
    """Return what the file, config.json and the path say."""
    weights = tensors_of(source.weights, KEYS, {SKIP}, "a Gemma Scope 2 SAE")
    tensors = {name.replace("w_", "W_"): tensor for name, tensor in weights.items() if name != SKIP}
    found = Draft("gemma_scope_2", "jumprelu", tensors)
    if SKIP in weights:
        tensors["W_skip"] = summed(weights[SKIP], 1) if weights[SKIP].ndim == 3 else weights[SKIP]
    if tensors["W_dec"].ndim == 3:
        add_layers(found)
    found.transcoder = found.transcoder or SKIP in weights
    cfg = source.beside("config.json") or {}
    model_name = settings.text(cfg.get("model_name"), "model_name")
    found.model_name = (
        None if model_name is None else f"google/{model_name.removeprefix('google/').removesuffix('-v3')}"
    )
    _set_hooks(found, cfg, source)
    found.metadata = settings.plain({name: cfg.get(name) for name in ("width", "l0", "type")} | {"context_size": 1024})
    return found


def add_layers(found: Draft) -> None:
    """Add up the decoders of a cross-layer transcoder's layer, and say so."""
    found.transcoder = True
    found.notes.append(CROSS_LAYER.format(found.tensors["W_dec"].shape[1]))
    found.tensors["W_dec"] = summed(found.tensors["W_dec"], 1)
    if found.tensors["b_dec"].ndim == 2:
        found.tensors["b_dec"] = summed(found.tensors["b_dec"], 0)


def summed(tensor: Tensor, dim: int) -> Tensor:
    if not tensor.numel():
        raise CheckpointError("The decoder is empty; give another checkpoint.")
    return tensor.float().sum(dim)


def _set_hooks(found: Draft, cfg: Mapping[str, Any], source: Source) -> None:
    """Set the hook points by config.json's module names, else by the folder's."""
    place = CLT_PLACE.search(source.trail) or PLACE.search(source.trail)
    if place is not None:
        reads, writes = SITES[place[1]]
        found.hook_name = f"blocks.{int(place[2])}.{reads}"
        found.hook_name_out = writes and f"blocks.{int(place[2])}.{writes}"
    reads_module, writes_module = (
        settings.text(cfg.get(f"hf_hook_point_{io}"), f"hf_hook_point_{io}") for io in ("in", "out")
    )
    if reads_module is not None:
        found.hook_name = hooks.of_module(reads_module) or found.hook_name
    if writes_module not in (None, reads_module):
        found.hook_name_out = hooks.of_module(str(writes_module)) or found.hook_name_out
        found.transcoder = True
