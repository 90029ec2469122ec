"""dictionary_learning: ae.pt beside config.json, checkpoints/ae_<step>.pt, backups of a training run; and its forks.

AutoEncoder  relu((x - bias) @ W + b), activations times |decoder column|      Gated   as SAELens', bias subtracted
TopK, BatchTopK, Matryoshka   relu((x - b_dec) @ W + b), the k largest, or those above one threshold
JumpReLU     relu(pre) where pre > threshold, no bias subtracted          AutoEncoderNew  relu(x @ W + b), none either
The last is also how qresearch's DeepSeek R1 SAE is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import Architecture
from . import folding, hooks, settings
from .assembling import Draft, flipped, tensors_of
from .errors import CheckpointError
from .files import Source

LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
MATRICES = {"W_enc", "b_enc", "W_dec", "b_dec"}
GATED = {"encoder.weight", "decoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder_bias"}
NORMALISER = {"activation_mean", "activation_std", "activation_global_scale", "target_rms"}
NAMES = {
    "bias": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "encoder.bias": "b_enc",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
}
SCALED = ("b_enc", "b_dec", "b_gate", "b_mag", "threshold")
CLASSES: dict[str, Architecture] = {"AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk"}
WHICH = (
    "TopK and BatchTopK autoencoders of dictionary_learning have the same tensors, and there is no config.json "
    "that names dict_class: TopK is assumed."
)
UNSET = "The threshold was never set in training, so that every positive activation is kept."


def recognises(source: Source) -> bool:
    """Say whether these are the tensors of one of its classes."""
    if source.has(*LINEAR):
        return source.has("bias") or source.has("decoder.bias") or source.has("b_dec", "threshold")
    if source.has(*MATRICES, "threshold"):
        return source.has("group_sizes") or (source.is_torch and not source.has("cfg"))
    return source.has(*GATED)


def draft(source: Source) -> Draft:
    """Return what the file and config.json say; dict_class decides only what the tensors leave open."""
    trainer, buffer = _settings(source)
    found = Draft("dictionary_learning", *_read(source, str(trainer.get("dict_class", ""))))
    _set_selection(found, source, str(trainer.get("dict_class", "")))
    if source.has("bias"):
        found.folds.append(folding.fold_decoder_norm)
    found.subtract_b_dec = not (source.has("decoder.bias") or _is_jumprelu(source))
    _rescale(found, source)
    found.model_name = settings.text(trainer.get("lm_name"), "lm_name") or hooks.of_file(source.trail)[0]
    found.hook_name = _hook(trainer, buffer, source)
    about = {"ctx_len": buffer.get("ctx_len")} | {
        name: trainer.get(name) for name in ("trainer_class", "steps", "seed")
    }
    found.metadata = settings.plain(about)
    return found


def _settings(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the objects `trainer` and `buffer` of config.json; a backup has the former in itself."""
    cfg = source.above("config.json") or {}
    inner = source.around.get("config")
    trainer = cfg.get("trainer", inner if isinstance(inner, dict) else cfg)
    buffer = cfg.get("buffer")
    return (trainer if isinstance(trainer, dict) else {}), (buffer if isinstance(buffer, dict) else {})


def _is_jumprelu(source: Source) -> bool:
    return source.has(*MATRICES, "threshold") and not source.has("group_sizes")


def _read(source: Source, dict_class: str) -> tuple[Architecture, dict[str, Tensor]]:
    """Return the architecture, as far as the tensors tell it, and they under this project's names."""
    weights = {name: value for name, value in source.weights.items() if name not in {"k", "group_sizes"} | NORMALISER}
    if source.has(*GATED):
        tensors = tensors_of(weights, GATED, set(), "a gated autoencoder")
        tensors["encoder.bias"] = torch.zeros_like(tensors["gate_bias"])
        return "gated", _renamed(tensors)
    if source.has(*MATRICES):
        tensors = tensors_of(weights, MATRICES | {"threshold"}, set(), "this autoencoder")
        return ("jumprelu" if _is_jumprelu(source) else "batchtopk"), tensors
    bias = {"bias", "decoder.bias", "b_dec"} & weights.keys()
    tensors = _renamed(tensors_of(weights, LINEAR | bias, {"threshold"}, "an autoencoder of dictionary_learning"))
    return (CLASSES.get(dict_class, "topk") if "threshold" in weights else "standard"), tensors


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    tensors = {NAMES.get(name, name): tensor for name, tensor in weights.items() if not name.endswith(".weight")}
    return tensors | {
        "W_enc": flipped(weights["encoder.weight"], "encoder.weight"),
        "W_dec": flipped(weights["decoder.weight"], "decoder.weight"),
    }


def _set_selection(found: Draft, source: Source, dict_class: str) -> None:
    """Set k, or one threshold for all latents."""
    normalised = source.has("activation_mean")
    if source.has("b_dec", "threshold") and source.has(*LINEAR):
        if normalised:
            found.architecture = "batchtopk"
        elif dict_class not in CLASSES:
            found.ask("architecture", WHICH, default="topk")
        if source.said.architecture in CLASSES.values():
            found.architecture = "topk" if source.said.architecture == "topk" else "batchtopk"
    if found.architecture == "topk":
        found.k = source.said.k or _k(source)
        found.tensors.pop("threshold", None)
    elif found.architecture == "batchtopk":
        if found.tensors["threshold"].numel() != 1:
            raise CheckpointError(f"threshold has {found.tensors['threshold'].numel()} numbers; expected one for all.")
        if float(found.tensors["threshold"]) < 0:
            found.notes.append(UNSET)
        found.tensors["threshold"] = found.tensors["threshold"].reshape(()).expand(found.tensors["b_enc"].numel())


def _k(source: Source) -> int:
    k = source.weights.get("k")
    if not isinstance(k, Tensor) or k.numel() != 1 or k.is_floating_point() or k.dtype == torch.bool:
        raise CheckpointError("k is not a whole number in this file; give k, the number of latents kept per token.")
    return settings.whole(int(k), "k")


def _rescale(found: Draft, source: Source) -> None:
    """Undo normalised activations: a backup's factor is not yet in its biases, a fork keeps its own beside the weights.

    The fork reads (x - mean) * scale, which is scale * x less another bias, and its output is mapped back alike.
    """
    tensors, factor = found.tensors, source.around.get("norm_factor")
    if factor is not None:
        factor = settings.number(_item(factor), "norm_factor")
        for name in set(SCALED) & tensors.keys():
            tensors[name] = tensors[name].float() * factor
    mean, scale = source.weights.get("activation_mean"), source.weights.get("activation_global_scale")
    if isinstance(mean, Tensor) and isinstance(scale, Tensor) and bool(mean.isfinite().all()):
        if scale.numel() != 1 or mean.shape != tensors["b_dec"].shape:
            raise CheckpointError("activation_mean and activation_global_scale are not those of one hook point.")
        found.input_scale = settings.number(float(scale), "activation_global_scale")
        tensors["b_dec"] = tensors["b_dec"].float() + found.input_scale * mean.float()


def _item(value: Any) -> Any:
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else value


def _hook(trainer: Mapping[str, Any], buffer: Mapping[str, Any], source: Source) -> str | None:
    """Return the hook point by submodule_name, else by the folders' names, else by layer and width alone."""
    name, layer = settings.text(trainer.get("submodule_name"), "submodule_name") or "", trainer.get("layer")
    io: Literal["in", "out"] = "in" if buffer.get("io") == "in" else "out"
    found = hooks.in_text(name) or hooks.of_module(name, io, str(trainer.get("lm_name", "")))
    if found is None and isinstance(layer, int) and not isinstance(layer, bool) and name in hooks.SITES:
        found = f"blocks.{layer}.{hooks.SITES[name]}"
    return found or hooks.in_text(source.trail) or hooks.of_file(source.trail)[1]
