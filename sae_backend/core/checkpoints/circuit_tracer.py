"""circuit-tracer's transcoders: layer_N.safetensors and config.yaml; and layers of its cross-layer transcoders.

acts = relu(x @ W_enc.T + b_enc), or where pre > threshold; recon = acts @ W_dec + b_dec [+ x @ W_skip.T], W_enc and
W_dec with a row per latent. A cross-layer transcoder is W_enc_N.safetensors and W_dec_N.safetensors, whose W_dec_N
[d_sae, layers it writes to, d].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from . import settings
from .assembling import Draft, flipped, tensors_of
from .errors import CheckpointError
from .files import Source
from .gemma_scope_2 import add_layers

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec"}
THRESHOLDS = ("threshold", "activation_function.threshold")
NUMBERED = re.compile(r"W_enc_(\d+)")
LAYER = re.compile(r"layer_(\d+)\.")


def recognises(source: Source) -> bool:
    """Say whether names carry a layer, or an encoder without cfg.json has a row per latent."""
    if _numbered(source) is not None:
        return True
    if source.is_torch or not source.has(*KEYS) or source.rank("W_enc") != 2 or source.rank("b_enc") != 1:
        return False
    rows, columns = source.weights["W_enc"].shape
    return bool(rows == len(source.weights["b_enc"]) != columns)


def draft(source: Source) -> Draft:
    """Return what the weights and config.yaml say."""
    layer = _numbered(source)
    weights = dict(source.weights) if layer is None else _unnumbered(source, layer)
    tensors = tensors_of(weights, KEYS, {"W_skip", *THRESHOLDS}, "a circuit-tracer transcoder")
    for name in set(THRESHOLDS) & tensors.keys():
        tensors["threshold"] = tensors.pop(name)
    tensors["W_enc"] = flipped(tensors["W_enc"], "W_enc")
    if "W_skip" in tensors:
        tensors["W_skip"] = flipped(tensors["W_skip"], "W_skip")
    found = Draft("circuit_tracer", "jumprelu" if "threshold" in tensors else "standard", tensors, transcoder=True)
    if tensors["W_dec"].ndim == 3:
        add_layers(found)
    _set_hooks(found, source.yaml("config.yaml"), layer or _layer(source))
    return found


def _numbered(source: Source) -> str | None:
    return next((match[1] for name in sorted(source.keys) if (match := NUMBERED.fullmatch(name))), None)


def _unnumbered(source: Source, layer: str) -> dict[str, Any]:
    """Return the tensors of a layer without its number; the decoder is in a file of its own."""
    weights, decoder = dict(source.weights), source.sibling(f"W_dec_{layer}.safetensors")
    if f"W_dec_{layer}" not in weights:
        if decoder not in source.files.paths:
            raise CheckpointError(f"{settings.listed([decoder])} is missing; give it with {source.name}.")
        weights |= source.files.weights(decoder)
    return {name.removesuffix(f"_{layer}"): value for name, value in weights.items()}


def _layer(source: Source) -> str | None:
    found = LAYER.search(source.trail)
    return found[1] if found else None


def _set_hooks(found: Draft, cfg: Mapping[str, str], layer: str | None) -> None:
    found.model_name = settings.text(cfg.get("model_name"), "model_name")
    if layer is None:
        return
    reads, writes = cfg.get("feature_input_hook"), cfg.get("feature_output_hook")
    found.hook_name = settings.hook(reads and f"blocks.{int(layer)}.{reads}", "feature_input_hook")
    found.hook_name_out = settings.hook(writes and f"blocks.{int(layer)}.{writes}", "feature_output_hook")
