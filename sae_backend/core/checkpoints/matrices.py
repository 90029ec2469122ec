"""Bare state dicts of research code: W_enc [d d_sae], W_dec, b_enc, b_dec; NAME.pt beside NAME_cfg.json.

Neel Nanda's one-layer SAEs, Connor Kissane's and Rob Krzyzanowski's of attention, and what people save by hand:
relu((x - b_dec) @ W_enc + b_enc).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from . import settings
from .assembling import Draft, tensors_of
from .files import Source

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec"}
NOTHING = (
    "There is no configuration beside the weights: a ReLU encoder of x - b_dec is assumed. "
    "Say the activation function, k or subtract_b_dec where that is wrong."
)


def recognises(source: Source) -> bool:
    """Say whether a torch file has the four tensors alone."""
    return source.is_torch and source.keys == KEYS and source.rank("W_enc") == 2


def draft(source: Source) -> Draft:
    """Return what the weights and the configuration of the same name say."""
    cfg = _cfg(source)
    found = Draft("matrices", "standard", tensors_of(source.weights, KEYS, set(), "an SAE"), subtract_b_dec=True)
    found.hook_name = settings.hook(cfg.get("act_name", cfg.get("hook_point")), "act_name")
    found.model_name = settings.text(cfg.get("model_name"), "model_name")
    found.metadata = settings.plain(
        {name: cfg.get(name) for name in ("dict_mult", "l1_coeff", "lr", "seq_len", "site")}
    )
    if not cfg:
        found.notes.append(NOTHING)
    return found


def _cfg(source: Source) -> Mapping[str, Any]:
    stem = PurePosixPath(source.name).stem
    return source.beside(f"{stem}_cfg.json") or {}
