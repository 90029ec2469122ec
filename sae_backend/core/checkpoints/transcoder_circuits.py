"""transcoder_circuits (Dunefsky, Chlenski, Nanda): {cfg, state_dict}, two biases b_dec [d] and b_dec_out [d_out].

acts = relu((x - b_dec) @ W_enc + b_enc); recon = acts @ W_dec + b_dec_out.
"""

from __future__ import annotations

from . import folding, settings
from .assembling import Draft, tensors_of
from .files import Source

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec", "b_dec_out"}


def recognises(source: Source) -> bool:
    """Say whether there is a second bias."""
    return source.has(*KEYS)


def draft(source: Source) -> Draft:
    """Return what the weights and the configuration pickled with them say."""
    weights = tensors_of(source.weights, KEYS, set(), "a transcoder of transcoder_circuits")
    tensors = weights | {"b_in": weights["b_dec"], "b_dec": weights["b_dec_out"]}
    del tensors["b_dec_out"]
    found = Draft("transcoder_circuits", "standard", tensors, transcoder=True)
    found.folds.append(folding.fold_input_bias)
    cfg = source.around.get("cfg")
    cfg = cfg if isinstance(cfg, dict) else source.beside("cfg.json") or {}
    found.hook_name = settings.hook(cfg.get("hook_point"), "hook_point")
    found.hook_name_out = settings.hook(cfg.get("out_hook_point"), "out_hook_point")
    found.model_name = settings.text(cfg.get("model_name"), "model_name")
    found.metadata = settings.plain(
        {name: cfg.get(name) for name in ("context_size", "dataset_path", "l1_coefficient")}
    )
    return found
