"""What is known and cannot have pages of latents: said by name, with what to do instead."""

from __future__ import annotations

from .assembling import Draft
from .errors import CheckpointError
from .files import Source

TEMPORAL = (
    "This is a temporal SAE: its latents depend on the whole context, not on one token, so that none has activations "
    "of its own. Give an SAE that reads one token at a time."
)
LAYERS = (
    "This is a crosscoder of {} layers or models: each latent adds up what all of them say, so that no hook point "
    "alone has its activations. Give an SAE or transcoder of a single hook point."
)


def recognises(source: Source) -> bool:
    """Say whether these are a temporal SAE's or a crosscoder's tensors."""
    return _is_temporal(source) or _layers(source) > 1


def draft(source: Source) -> Draft:
    """Raise the sentence; there is nothing to return."""
    raise CheckpointError(TEMPORAL if _is_temporal(source) else LAYERS.format(_layers(source)))


def _is_temporal(source: Source) -> bool:
    return any(name.startswith("attn_layers.") for name in source.keys)


def _layers(source: Source) -> int:
    """Return how many layers or models an encoder of rank 3 reads; 0 if there is none."""
    for name in ("encoder.weight", "W_enc"):
        if source.has(name) and not source.has("W_E") and source.rank(name) == 3:
            return int(source.weights[name].shape[0])
    return 0
