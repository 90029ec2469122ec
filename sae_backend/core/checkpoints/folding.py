"""Rewrite weights so that a step around the encoder or decoder becomes part of them, with equal results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .assembling import Draft, oriented, sizes_of
from .errors import CheckpointError


def fold_factors(tensors: dict[str, Tensor], names: Iterable[str]) -> None:
    """Fold factors [d_sae] that multiply the activations before decoding into W_dec; take them out."""
    for name in names:
        factor = tensors.pop(name, None)
        if factor is not None and not bool((factor == 1).all()):
            rows = _decoder_rows(tensors)
            if factor.shape != rows.shape[:1]:
                raise CheckpointError(
                    f"{name} has {factor.numel()} numbers; expected one for each of {len(rows)} latents."
                )
            tensors["W_dec"] = rows * factor.float().unsqueeze(1)


def fold_decoder_norm(draft: Draft) -> None:
    """Fold |W_dec row| into the encoder: pre_acts * norm are ranked and kept, and decoded along unit rows."""
    tensors = draft.tensors
    rows = _decoder_rows(tensors)
    norm = rows.norm(dim=1)
    encoder = oriented(tensors["W_enc"], "W_enc", sizes_of(tensors)).float()
    tensors["W_enc"], tensors["b_enc"] = encoder * norm, tensors["b_enc"].float() * norm
    # The row of a latent without a decoder stays zero.
    tensors["W_dec"] = rows / norm.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)


def threshold_by_decoder_norm(draft: Draft) -> None:
    """Turn thresholds of pre_acts * |W_dec row| into thresholds of pre_acts; without a decoder row none is reached."""
    tensors, info = draft.tensors, torch.finfo(torch.float32)
    norm = _decoder_rows(tensors).norm(dim=1).clamp_min(info.tiny)
    tensors["threshold"] = (tensors["threshold"].float() / norm).clamp_max(info.max)


def fold_input_bias(draft: Draft) -> None:
    """Fold a bias that is subtracted from the input, but not the decoder's, into b_enc."""
    tensors = draft.tensors
    bias = tensors.pop("b_in").float()
    d_in, _, _ = sizes = sizes_of(tensors)
    if bias.shape != (d_in,):
        raise CheckpointError(f"The input's bias has {bias.numel()} numbers; expected d_in, {d_in}.")
    encoder = oriented(tensors["W_enc"], "W_enc", sizes).float()
    tensors["b_enc"] = tensors["b_enc"].float() - bias @ encoder


def fold_whitening(draft: Draft, white: Mapping[str, Tensor]) -> None:
    """Fold x -> (x - mean) @ matrix before encoding, and its inverse after decoding, into the weights."""
    tensors = draft.tensors
    mean, matrix, inverse = (white[name].float() for name in ("mean", "matrix", "inverse_matrix"))
    d_in, _, d_out = sizes_of(tensors)
    if mean.shape != (d_in,) or matrix.shape != (d_in, d_in) or inverse.shape != (d_out, d_out):
        raise CheckpointError(
            f"The whitening is not of {d_in} dimensions, as the SAE is; they belong to different SAEs."
        )
    encoder = matrix @ oriented(tensors["W_enc"], "W_enc", sizes_of(tensors)).float()
    if not draft.subtract_b_dec:
        tensors["b_enc"] = tensors["b_enc"].float() - mean @ encoder
    tensors["W_enc"], tensors["W_dec"] = encoder, _decoder_rows(tensors) @ inverse
    tensors["b_dec"] = tensors["b_dec"].float() @ inverse + mean


def _decoder_rows(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return W_dec in float32 with one row per latent."""
    _, d_sae, d_out = sizes_of(tensors)
    rows = oriented(tensors["W_dec"], "W_dec", sizes_of(tensors))
    if rows.shape != (d_sae, d_out):
        raise CheckpointError(f"W_dec is {' × '.join(map(str, rows.shape))}; expected {d_sae} × {d_out}.")
    return rows.float()
