"""From a format's tensors and facts to a SparseAutoencoder: orientation, a float32 copy, every check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..config import Architecture, InputNorm, Plain, SaeConfig
from ..sae import SparseAutoencoder
from . import settings
from .errors import CheckpointError
from .reading import FLOATS, Files, Overrides, listed

INPUT_NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm"}


@dataclass
class Draft:
    """What a format found, its tensors under this project's names and, where square, its way round."""

    format: str
    architecture: Architecture
    tensors: dict[str, Tensor]
    #: W_enc, b_enc, W_dec, b_dec and what else the architecture has; not copied, any float dtype.
    hook_name: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None
    k: int | None = None
    input_norm: InputNorm = "none"
    input_scale: float = 1.0
    output_scale: float | None = None
    #: None is 1 / input_scale, as in an SAE.
    subtract_b_dec: bool = False
    rank_by_decoder_norm: bool = False
    metadata: dict[str, Plain] = field(default_factory=dict)


def assemble(draft: Draft, files: Files) -> SparseAutoencoder:
    """Return the SAE of a draft, with what the person said in place of what the files say."""
    _apply(files.overrides, draft)
    sizes = sizes_of(draft.tensors)
    tensors = {name: _own_copy(oriented(tensor, name, sizes), name) for name, tensor in draft.tensors.items()}
    if "threshold" in tensors:
        # Below zero it has no effect (dictionary_learning's "never set" is -1): relu has the last word.
        tensors["threshold"].clamp_(min=0)
    try:
        return SparseAutoencoder(_config(draft, *sizes), **tensors)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def tensors_of(
    weights: Mapping[str, Any], required: set[str], optional: set[str], what: str
) -> dict[str, Tensor]:
    """Return the required and what is there of the optional; any other tensor or dtype is an error."""
    if missing := required - weights.keys():
        raise CheckpointError(
            f"{listed(sorted(missing))} missing; {what} needs it. Found: {listed(sorted(weights))}."
        )
    if unknown := weights.keys() - required - optional:
        raise CheckpointError(
            f"{what} has no {listed(sorted(unknown))}; these weights are of another kind. "
            f"Found: {listed(sorted(weights))}."
        )
    chosen = {name: weights[name] for name in weights if name in required | optional}
    for name, tensor in chosen.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            kind = str(tensor.dtype) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"{name} is {kind}; expected a tensor of floating-point numbers.")
    return chosen


def _apply(said: Overrides, draft: Draft) -> None:
    draft.hook_name = settings.hook(said.hook_name, "hook_name") or draft.hook_name
    draft.hook_name_out = settings.hook(said.hook_name_out, "hook_name_out") or draft.hook_name_out
    draft.model_name = settings.text(said.model_name, "model_name") or draft.model_name
    if said.k is not None:
        draft.k = settings.whole(said.k, "k")
    if said.input_norm is not None:
        draft.input_norm = cast(InputNorm, settings.choice(said.input_norm, "input_norm", INPUT_NORMS))
    if said.input_scale is not None:
        draft.input_scale = settings.number(said.input_scale, "input_scale")


def _config(draft: Draft, d_in: int, d_sae: int, d_out: int) -> SaeConfig:
    output_scale = 1 / draft.input_scale if draft.output_scale is None else draft.output_scale
    fields = {name: value for name, value in vars(draft).items() if name not in ("tensors", "output_scale")}
    return SaeConfig(d_in=d_in, d_sae=d_sae, d_out=d_out, output_scale=output_scale, **fields)


def sizes_of(tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return d_in, d_sae, d_out: biases have one length, whichever way round the matrices are stored."""
    for name, ndim in {"W_enc": 2, "b_enc": 1, "W_dec": 2, "b_dec": 1}.items():
        if tensors[name].ndim != ndim:
            kind = "a matrix" if ndim == 2 else "one number for each latent or coordinate"
            raise CheckpointError(f"{name} is {_shape(tensors[name])}; expected {kind}.")
    d_sae, d_out = len(tensors["b_enc"]), len(tensors["b_dec"])
    rows, columns = tensors["W_enc"].shape
    if d_sae not in (rows, columns):
        raise CheckpointError(
            f"W_enc is {_shape(tensors['W_enc'])}, but b_enc has {d_sae} numbers, one per latent."
        )
    return (rows if columns == d_sae else columns), d_sae, d_out


def oriented(tensor: Tensor, name: str, sizes: tuple[int, int, int]) -> Tensor:
    """Return a matrix this project's way round; a square one is as the format's convention left it."""
    d_in, d_sae, d_out = sizes
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "W_skip": (d_in, d_out)}.get(name)
    if expected and tensor.shape != expected and tensor.T.shape == expected:
        return tensor.T
    return tensor


def _own_copy(tensor: Tensor, name: str) -> Tensor:
    """Return a float32 copy: views of the file would change, or crash the process, when someone writes to it.

    W_enc keeps the memory order of the file, which the matmul reads either way; all else becomes contiguous.
    """
    order = torch.preserve_format if name == "W_enc" else torch.contiguous_format
    copy = tensor.to(torch.float32, copy=True, memory_format=order)
    if copy.numel() and not all(bound.isfinite() for bound in torch.aminmax(copy)):
        raise CheckpointError(
            f"{name} has values that are NaN or infinite in float32: training diverged, or the file is "
            "damaged. Give another checkpoint."
        )
    return copy


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a single number"
