"""Goodfire: one torch file, encoder_linear and decoder_linear; relu(x @ W + b), no bias subtracted."""

from __future__ import annotations

from . import hooks
from .assembling import Draft, flipped, tensors_of
from .files import Source

KEYS = {"encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"}


def recognises(source: Source) -> bool:
    """Say whether both layers are there."""
    return source.has(*KEYS)


def draft(source: Source) -> Draft:
    """Return what the file and its name say: Llama-3.1-8B-Instruct-SAE-l19 reads what block 19 writes."""
    weights = tensors_of(source.weights, KEYS, set(), "a Goodfire SAE")
    tensors = {
        "W_enc": flipped(weights["encoder_linear.weight"], "encoder_linear.weight"),
        "b_enc": weights["encoder_linear.bias"],
        "W_dec": flipped(weights["decoder_linear.weight"], "decoder_linear.weight"),
        "b_dec": weights["decoder_linear.bias"],
    }
    model_name, hook_name = hooks.of_file(source.trail)
    return Draft("goodfire", "standard", tensors, model_name=model_name, hook_name=hook_name)
