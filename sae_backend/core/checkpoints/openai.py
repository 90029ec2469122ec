"""OpenAI's sparse_autoencoder: one torch file, a flat state dict of nn.Linear weights, without a hook point.

acts = act((n(x) - pre_bias) @ W + latent_bias); recon = (acts @ W_dec + pre_bias) * std + mean,
where n is a layer norm exactly if the stored activation is TopK: their reader infers it, there is no flag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..sae import SparseAutoencoder
from . import settings
from .assembling import Draft, assemble, tensors_of
from .errors import CheckpointError
from .reading import Files, one

NAME = "OpenAI sparse_autoencoder"
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


def recognises(files: Files) -> bool:
    """Say whether any file has the state dict's three names."""
    return bool(files.holding(*KEYS))


def convert(files: Files) -> SparseAutoencoder:
    """Return the SAE; a TopK file of their train.py does not hold k, which the person must give."""
    state = files.weights(one(files.holding(*KEYS), "checkpoints"))
    weights = {name: value for name, value in state.items() if name not in NOT_WEIGHTS}
    tensors = _renamed(tensors_of(weights, set(KEYS), DECODERS, "an OpenAI autoencoder"))
    draft = Draft("openai", "standard", tensors, subtract_b_dec=True)
    activation = _activation(state, files)
    if activation != "ReLU":
        draft.architecture, draft.k = "topk", _k(state, files)
    if activation == "TopK":
        draft.input_norm = "layer_norm"
    return assemble(draft, files)


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translate the names; a tied decoder is stored as the encoder's own matrix, or not at all."""
    tied = weights.get("decoder.linear.weight", weights["encoder.weight"])
    return {
        "W_enc": weights["encoder.weight"].T,
        "b_enc": weights["latent_bias"],
        "W_dec": weights["decoder.weight"].T if "decoder.weight" in weights else tied,
        "b_dec": weights["pre_bias"],
    }


def _activation(state: Mapping[str, Any], files: Files) -> str:
    """Return ReLU, TopK (inputs layer-normed) or FastAutoencoder (TopK on the raw input)."""
    if "activation" in state:
        return settings.choice(state["activation"], "activation", {"ReLU": "ReLU", "TopK": "TopK"})
    if "latents_mean_square" in state:
        return "ReLU"
    if files.overrides.k is None:
        raise CheckpointError(
            "This file is as train.py of sparse_autoencoder writes it: a TopK autoencoder without its k. "
            "Give k, the number of latents kept per token it was trained with."
        )
    return "FastAutoencoder"


def _k(state: Mapping[str, Any], files: Files) -> int:
    """Return k, refusing a TopK whose kept values may be negative."""
    details = state.get("activation_state_dict")
    details = details if isinstance(details, dict) else {}
    postact = details.get("postact_fn", state.get("activation.postact_fn", "ReLU"))
    if postact != "ReLU":
        raise CheckpointError(
            f"postact_fn is {settings.shown(postact)}, with which activations may be negative; "
            "only ReLU is supported."
        )
    k = files.overrides.k or details.get("k", state.get("activation.k"))
    if k is None:
        raise CheckpointError("The file says TopK but not k; give k, the number of latents kept per token.")
    return settings.whole(k, "k")
