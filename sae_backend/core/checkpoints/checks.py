"""What weights alone tell about whether a checkpoint was read rightly, before any text has run through it."""

from __future__ import annotations

import torch

from ..detected import FORMATS, Check
from ..sae import SparseAutoencoder

UNIT = 0.01
#: relative difference from a norm of 1 that still counts as a unit
UNLIKE = 0.1
#: mean cosine of encoder and decoder below which they hardly belong together


def static(sae: SparseAutoencoder) -> list[Check]:
    """Return one check for each thing that can be wrong with the weights of an SAE."""
    return [_container(sae), _shapes(sae), _finite(sae), _decoder(sae), _alignment(sae), _scaling(sae)]


def _container(sae: SparseAutoencoder) -> Check:
    note = sae.cfg.metadata.get("note")
    size = sum(tensor.nbytes for tensor in sae.tensors().values())
    said = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
    text = f"Read as {FORMATS.get(sae.cfg.format, sae.cfg.format)}. {note or ''}".strip()
    return Check("container", "warn" if note else "ok", text, f"{len(sae.tensors())} tensors, {said}")


def _shapes(sae: SparseAutoencoder) -> Check:
    cfg = sae.cfg
    text = f"W_enc {_shape(sae.W_enc)}, W_dec {_shape(sae.W_dec)}: {cfg.d_sae:,} latents."
    figure = f"{cfg.d_sae / cfg.d_in:.3g} × d_in"
    if cfg.d_sae <= cfg.d_in:
        text += " An SAE has more latents than d_in; matrices may be the other way round."
        return Check("shapes", "warn", text, figure)
    return Check("shapes", "ok", text, figure)


def _shape(matrix: torch.Tensor) -> str:
    return " × ".join(f"{n:,}" for n in matrix.shape)


def _finite(sae: SparseAutoencoder) -> Check:
    bad = [name for name, tensor in sae.tensors().items() if not all(b.isfinite() for b in torch.aminmax(tensor))]
    if bad:
        return Check("finite values", "fail", f"{', '.join(bad)} have NaN or infinite values: training diverged.")
    values = sum(tensor.numel() for tensor in sae.tensors().values())
    return Check("finite values", "ok", "All weights are finite.", f"{values:,} values")


def _decoder(sae: SparseAutoencoder) -> Check:
    norm = sae.W_dec.norm(dim=1)
    empty = int((norm == 0).sum())
    low, high = (float(each) for each in torch.aminmax(norm))
    if empty == len(norm):
        return Check("decoder norms", "fail", "Every decoder row is zero: the SAE writes nothing.")
    if empty:
        return Check("decoder norms", "warn", f"{empty:,} latents have a decoder row of zeros and write nothing.")
    if max(1 - low, high - 1) <= UNIT:
        return Check("decoder norms", "ok", "Every decoder row has norm 1.")
    text = (
        f"Decoder rows have norms from {low:.3g} to {high:.3g}; activations are compared after multiplying with them."
    )
    return Check("decoder norms", "ok", text, f"mean {float(norm.mean()):.3g}")


def _alignment(sae: SparseAutoencoder) -> Check:
    """An encoder direction resembles its decoder direction in every trained SAE; not in a transcoder."""
    if sae.cfg.hook_name_out is not None or sae.cfg.d_in != sae.cfg.d_out:
        return Check("encoder and decoder", "ok", "A transcoder's encoder and decoder need not resemble each other.")
    encoder, decoder = sae.W_enc.T, sae.W_dec
    cosine = float(torch.nn.functional.cosine_similarity(encoder, decoder, dim=1).mean())
    figure = f"cosine {cosine:.2f}".replace("-", "\N{MINUS SIGN}")
    if cosine < UNLIKE:
        text = (
            "Encoder and decoder directions hardly resemble each other: a matrix may be the other way round, or this "
            "is a transcoder, or was never trained."
        )
        return Check("encoder and decoder", "warn", text, figure)
    return Check("encoder and decoder", "ok", "Encoder and decoder directions resemble each other.", figure)


def _scaling(sae: SparseAutoencoder) -> Check:
    cfg = sae.cfg
    done = {
        "none": "as they are",
        "layer_norm": "layer-normed",
        "constant_norm": "scaled to norm √d",
        "centred": "less their mean",
    }[cfg.input_norm]
    if cfg.input_scale != 1.0:
        done += ", times a constant"
    if cfg.subtract_b_dec:
        done += ", less b_dec"
    figure = f"× {cfg.input_scale:.4g}" if cfg.input_scale != 1.0 else ""
    return Check("input scaling", "ok", f"Inputs are read {done}.", figure)
