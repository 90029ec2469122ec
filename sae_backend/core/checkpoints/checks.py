"""What weights alone tell about whether a checkpoint was read rightly, before any text has run through it."""

from __future__ import annotations

import torch

from ..detected import Check
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
    return Check("container", "warn" if note else "ok", f"Read as {sae.cfg.format}. {note or ''}".strip())


def _shapes(sae: SparseAutoencoder) -> Check:
    cfg = sae.cfg
    text = f"{cfg.d_sae:,} latents, d_in {cfg.d_in:,}, d_out {cfg.d_out:,}."
    if cfg.d_sae <= cfg.d_in:
        return Check(
            "shapes", "warn", f"{text} An SAE has more latents than d_in; matrices may be the other way round."
        )
    return Check("shapes", "ok", text)


def _finite(sae: SparseAutoencoder) -> Check:
    bad = [name for name, tensor in sae.tensors().items() if not all(b.isfinite() for b in torch.aminmax(tensor))]
    if bad:
        return Check("finite values", "fail", f"{', '.join(bad)} have NaN or infinite values: training diverged.")
    return Check("finite values", "ok", "All weights are finite.")


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
    return Check("decoder norms", "ok", text)


def _alignment(sae: SparseAutoencoder) -> Check:
    """An encoder direction resembles its decoder direction in every trained SAE; not in a transcoder."""
    if sae.cfg.hook_name_out is not None or sae.cfg.d_in != sae.cfg.d_out:
        return Check("encoder and decoder", "ok", "A transcoder's encoder and decoder need not resemble each other.")
    encoder, decoder = sae.W_enc.T, sae.W_dec
    cosine = float(torch.nn.functional.cosine_similarity(encoder, decoder, dim=1).mean())
    if cosine < UNLIKE:
        text = (
            f"Encoder and decoder directions have a mean cosine of {cosine:.2f}: a matrix may be the other way round, "
        )
        return Check("encoder and decoder", "warn", text + "or this is a transcoder, or was never trained.")
    return Check("encoder and decoder", "ok", f"Encoder and decoder directions have a mean cosine of {cosine:.2f}.")


def _scaling(sae: SparseAutoencoder) -> Check:
    cfg = sae.cfg
    done = {
        "none": "as they are",
        "layer_norm": "layer-normed",
        "constant_norm": "scaled to norm √d",
        "centred": "less their mean",
    }[cfg.input_norm]
    if cfg.input_scale != 1.0:
        done += f", times {cfg.input_scale:.4g}"
    if cfg.subtract_b_dec:
        done += ", less b_dec"
    return Check("input scaling", "ok", f"Inputs are read {done}.")
