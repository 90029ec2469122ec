"""OpenAI's sparse_autoencoder: one torch file, a flat state dict of nn.Linear weights; its path has the hook point.

acts = act((n(x) - pre_bias) @ W + latent_bias); recon = (acts @ W_dec + pre_bias) * std + mean,
where n is a layer norm exactly if the stored activation is TopK: their reader infers it, there is no flag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from . import settings
from .assembling import Draft, flipped, tensors_of
from .files import Source

KEYS = ("pre_bias", "latent_bias", "encoder.weight")
DECODERS = {"decoder.weight", "decoder.linear.weight"}
NOT_WEIGHTS = {
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
    "activation",
    "activation_state_dict",
    "activation.k",
    "activation.postact_fn",
}
SITES = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_post_mlp": "hook_resid_post",
}
PLACE = re.compile(rf"({'|'.join(SITES)})(?:_v\d\w*?)?(?:/autoencoders)?[/_](\d+)\.pt$")
FAST = (
    "This file is as train.py of sparse_autoencoder writes it: a TopK autoencoder without its k. "
    "Give k, the number of latents kept per token it was trained with."
)
NORM = "The file cannot say whether inputs are layer-normed; OpenAI's own TopK autoencoders expect it."
NEGATIVE = (
    "Values kept by its TopK may be negative where a token has fewer than k positive ones; those are left out here."
)


def recognises(source: Source) -> bool:
    """Say whether the state dict has the three names."""
    return source.has(*KEYS)


def draft(source: Source) -> Draft:
    """Return what the file says; a TopK file of their train.py does not hold k, which the person must give."""
    state = source.weights
    weights = {name: value for name, value in state.items() if name not in NOT_WEIGHTS}
    tensors = _renamed(tensors_of(weights, set(KEYS), DECODERS, "an OpenAI autoencoder"))
    found = Draft("openai", "standard", tensors, subtract_b_dec=True, since_fired=state.get("stats_last_nonzero"))
    if place := PLACE.search(source.trail):
        found.hook_name = f"blocks.{int(place[2])}.{SITES[place[1]]}"
        found.model_name = "gpt2-small" if "gpt2-small" in source.trail else None
    activation = _activation(state)
    if activation != "ReLU":
        found.architecture = "topk"
        _set_k(found, state, source)
    if activation == "TopK":
        found.input_norm = "layer_norm"
        found.ask("input_norm", NORM, default="layer_norm")
    return found


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names; a tied decoder is stored as the encoder's own matrix, or not at all."""
    tied = weights.get("decoder.linear.weight", weights["encoder.weight"])
    return {
        "W_enc": flipped(weights["encoder.weight"], "encoder.weight"),
        "b_enc": weights["latent_bias"],
        "W_dec": flipped(weights["decoder.weight"], "decoder.weight") if "decoder.weight" in weights else tied,
        "b_dec": weights["pre_bias"],
    }


def _activation(state: Mapping[str, Any]) -> str:
    """Return ReLU, TopK (inputs layer-normed) or FastAutoencoder (TopK on the raw input)."""
    if "activation" in state:
        return settings.choice(state["activation"], "activation", {"ReLU": "ReLU", "TopK": "TopK"})
    return "ReLU" if "latents_mean_square" in state else "FastAutoencoder"


def _set_k(found: Draft, state: Mapping[str, Any], source: Source) -> None:
    """Set k, or ask for it; a TopK without ReLU after it is one with it, but for tokens with few positive values."""
    details = state.get("activation_state_dict")
    details = details if isinstance(details, dict) else {}
    postact = details.get("postact_fn", state.get("activation.postact_fn", "ReLU"))
    if settings.choice(postact, "postact_fn", {"ReLU": "ReLU", "Identity": "Identity"}) == "Identity":
        found.notes.append(NEGATIVE)
    k = details.get("k", state.get("activation.k"))
    found.take_k(k, source, "The file says TopK but not k; give k." if "activation" in state else FAST)
