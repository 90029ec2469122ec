"""Qwen Scope: layerN.sae.pt, the names of SAELens the other way round: W_enc [d_sae d], W_dec [d d_sae].

acts = relu of the k largest of x @ W_enc.T + b_enc; k is in the repository's name alone, as in ...-L0_50.
"""

from __future__ import annotations

import re

from .assembling import Draft, flipped, tensors_of
from .files import Source

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec"}
REPOSITORY = re.compile(r"SAE-Res-(Qwen[\w.-]+?)-W\d+K-L0_(\d+)")
LAYER = re.compile(r"layer(\d+)\.sae")
K = "Qwen Scope's k is in the name of its repository alone: give k, 50 for one that ends in L0_50."


def recognises(source: Source) -> bool:
    """Say whether a torch file has the four tensors alone, the encoder with a row per latent."""
    if not source.is_torch or source.keys != KEYS or source.rank("W_enc") != 2 or source.rank("b_enc") != 1:
        return False
    rows, columns = source.weights["W_enc"].shape
    if rows == columns:
        return LAYER.search(source.trail) is not None
    return bool(rows == len(source.weights["b_enc"]))


def draft(source: Source) -> Draft:
    """Return what the file, its name and the repository's say."""
    weights = tensors_of(source.weights, KEYS, set(), "a Qwen Scope SAE")
    tensors = weights | {"W_enc": flipped(weights["W_enc"], "W_enc"), "W_dec": flipped(weights["W_dec"], "W_dec")}
    found = Draft("qwen_scope", "topk", tensors)
    named, layer = REPOSITORY.search(source.trail), LAYER.search(source.trail)
    if named is not None:
        found.model_name, found.k = f"Qwen/{named[1]}", int(named[2])
    elif source.said.k is None:
        found.ask("k", K)
    if layer is not None:
        found.hook_name = f"blocks.{int(layer[1])}.hook_resid_post"
    return found
