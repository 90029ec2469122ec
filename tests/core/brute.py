"""The figures of docs/statistics.md by their definitions, in a few lines of NumPy on dense activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sae_backend.core.activations import Part, Rows
from sae_backend.core.encode import Firings
from sae_backend.core.sae import SparseAutoencoder

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


def top_k(pre_acts: Floats, k: int) -> Floats:
    """Keep each row's k largest, of equal ones the first, and of those the positive."""
    order = np.argsort(-pre_acts, axis=1, kind="stable")[:, :k]
    kept = np.zeros_like(pre_acts)
    np.put_along_axis(kept, order, np.take_along_axis(pre_acts, order, 1), 1)
    return np.maximum(kept, 0)


def normalised(sae: SparseAutoencoder, x: Floats) -> tuple[Floats, Floats, Floats]:
    """What the encoder reads, and the mean and scale [n 1] that lead back; float64."""
    x = x.astype(np.float64)
    mean, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if sae.cfg.input_norm == "layer_norm":
        mean, scale = x.mean(1, keepdims=True), x.std(1, ddof=1, keepdims=True)
        x = (x - mean) / (scale + 1e-5)
    elif sae.cfg.input_norm == "centred":
        mean = x.mean(1, keepdims=True)
        x = x - mean
    elif sae.cfg.input_norm == "constant_norm":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        x = x / scale
    x = x * sae.cfg.input_scale
    return x - sae.b_dec.numpy() if sae.cfg.subtract_b_dec else x, mean, scale


def pre_activations(sae: SparseAutoencoder, x: Floats) -> Floats:
    """What the activation function is applied to, float64."""
    w = {name: t.numpy().astype(np.float64) for name, t in sae.tensors().items()}
    read = normalised(sae, x)[0]
    # no BLAS: its threads give a token other last bits at another place, and equal tokens would not be equal
    pre = np.einsum("ni,ij->nj", read, w["W_enc"]) + w["b_enc"]
    if "W_glu" in w:
        pre = pre / (1 + np.exp(-np.einsum("ni,ij->nj", read, w["W_glu"]) - w["b_glu"]))
    return pre


def groups(pre: Floats, k: int) -> Floats:
    """Keep the largest of each of k groups of neighbours, of equal ones the first, if positive."""
    grouped = pre.reshape(len(pre), k, -1)
    first = np.arange(grouped.shape[2]) == grouped.argmax(2)[..., None]
    return np.where(first & (grouped > 0), grouped, 0).reshape(pre.shape)


def own_scale(sae: SparseAutoencoder, x: Floats) -> Floats:
    """Activations [n d_sae] on the checkpoint's scale."""
    w = {name: t.numpy().astype(np.float64) for name, t in sae.tensors().items()}
    pre = pre_activations(sae, x)
    if sae.cfg.architecture == "groupmax":
        return groups(pre, sae.cfg.k or 1)
    if sae.cfg.architecture == "topk":
        factor = np.linalg.norm(w["W_dec"], axis=1) if sae.cfg.rank_by_decoder_norm else 1.0
        return np.where(top_k(pre * factor, sae.cfg.k or 0) > 0, pre, 0)
    if sae.cfg.architecture in ("jumprelu", "batchtopk"):
        return np.where((pre > w["threshold"]) & (pre > 0), pre, 0)
    if sae.cfg.architecture == "gated":
        return np.where(pre + w["b_gate"] > 0, np.maximum(pre * np.exp(w["r_mag"]) + w["b_mag"], 0), 0)
    acts = np.maximum(pre, 0)
    return np.tanh(acts) if sae.cfg.architecture == "tanh_relu" else acts


def doubtful(sae: SparseAutoencoder, x: Floats, margin: float = 1e-4) -> npt.NDArray[np.bool_]:
    """Which latents [n d_sae] are so near to firing or not that float32 may decide either way."""
    w = {name: t.numpy().astype(np.float64) for name, t in sae.tensors().items()}
    pre = pre_activations(sae, x)
    near = np.abs(pre) < margin
    if sae.cfg.architecture == "topk":
        ranked = pre * (np.linalg.norm(w["W_dec"], axis=1) if sae.cfg.rank_by_decoder_norm else 1.0)
        best = -np.sort(-ranked, axis=1)
        k = sae.cfg.k or 0
        rest = best[:, k : k + 1] if k < ranked.shape[1] else best[:, :1] - np.inf
        near |= np.where(ranked >= best[:, k - 1 : k], ranked - rest, best[:, k - 1 : k] - ranked) < margin
    if sae.cfg.architecture == "groupmax":
        grouped = pre.reshape(len(pre), sae.cfg.k or 1, -1)
        best = -np.sort(-grouped, axis=2)
        rival = np.where(grouped == best[..., :1], best[..., 1:2], best[..., :1])
        near |= (np.abs(grouped - rival) < margin).reshape(pre.shape)
    if sae.cfg.architecture in ("jumprelu", "batchtopk"):
        near |= np.abs(pre - w["threshold"]) < margin
    if sae.cfg.architecture == "gated":
        near = (np.abs(pre + w["b_gate"]) < margin) | (np.abs(pre * np.exp(w["r_mag"]) + w["b_mag"]) < margin)
    return near


def canonical(sae: SparseAutoencoder, x: Floats) -> Floats:
    """Activations [n d_sae] in the language model's own units."""
    norm = np.linalg.norm(sae.W_dec.numpy().astype(np.float64), axis=1) * sae.cfg.output_scale
    return own_scale(sae, x) * norm * normalised(sae, x)[2]


def margins(sae: SparseAutoencoder, x: Floats) -> Floats:
    """[n d_sae] by how much each pre-activation exceeds what it had to, in canonical units."""
    w = {name: t.numpy().astype(np.float64) for name, t in sae.tensors().items()}
    pre, norm, k = pre_activations(sae, x), np.linalg.norm(w["W_dec"], axis=1), sae.cfg.k or 1
    if sae.cfg.architecture == "topk":
        ranked, g = (pre * norm, np.ones_like(norm)) if sae.cfg.rank_by_decoder_norm else (pre, norm)
        spare = (ranked - np.maximum(np.sort(ranked, 1)[:, -k, None], 0)) * g
    elif sae.cfg.architecture == "groupmax":
        grouped = pre.reshape(len(pre), k, -1)
        spare = (grouped - np.maximum(grouped.max(2, keepdims=True), 0)).reshape(pre.shape) * norm
    elif sae.cfg.architecture == "gated":
        gain = np.exp(w["r_mag"])
        spare = np.minimum(pre + w["b_gate"], pre + w["b_mag"] / gain) * gain * norm
    else:
        spare = (pre - np.maximum(w.get("threshold", np.zeros(1)), 0)) * norm
    return spare * sae.cfg.output_scale * normalised(sae, x)[2]


def reconstruction(sae: SparseAutoencoder, x: Floats) -> Floats:
    _, mean, scale = normalised(sae, x)
    out = own_scale(sae, x) @ sae.W_dec.numpy().astype(np.float64) + sae.b_dec.numpy()
    out = out * sae.cfg.output_scale * scale + mean
    return out if sae.W_skip is None else out + x.astype(np.float64) @ sae.W_skip.numpy().astype(np.float64)


def stats(acts: Floats) -> dict[str, float]:
    """Every statistic of one latent over all tokens; NaN where undefined."""
    a = acts.astype(np.float64)
    on = a[a > 0]
    n, nan = len(on), float("nan")
    spread = n >= 4 and on.min() < on.max()
    d, e = (on - on.mean(), a - a.mean()) if n else (on, a)
    varies = n > 0 and a.min() < a.max()
    return {
        "firings": n,
        "density": n / len(a),
        "max_act": on.max() if n else nan,
        "mean_act": on.mean() if n else nan,
        "std_act": np.sqrt((d**2).mean()) if spread else nan,
        "skewness": (d**3).mean() / (d**2).mean() ** 1.5 if spread else nan,
        "kurtosis": (d**4).mean() / (d**2).mean() ** 2 if spread else nan,
        "kurtosis_all": (e**4).mean() / (e**2).mean() ** 2 if varies else nan,
        "kurtosis_zero": (a**4).mean() / (a**2).mean() ** 2 if n else nan,
    }


def band(acts: Floats, n_bands: int = 10) -> Ints:
    """1 … n_bands of each activation among the equal-width bands of (0, max]; 0 where there is none."""
    edges = np.arange(1, n_bands) * float(acts.max()) / n_bands
    return np.where(acts > 0, 1 + np.searchsorted(edges, acts, side="left"), 0)


def top_contexts(acts: Floats, tokens: npt.NDArray[np.uint32], k: int, reach: int) -> list[tuple[int, int]]:
    """(context, position) of the k strongest tokens [context pos], one a context, equal windows once."""
    peaks = [(-a.max(), c, int(a.argmax())) for c, a in enumerate(acts) if a.max() > 0]
    seen, kept = set(), []
    for _, context, pos in sorted(peaks):
        lo = max(0, pos - reach)
        window = (pos - lo, tuple(tokens[context, lo : pos + reach + 1].tolist()))
        if window not in seen:
            seen.add(window)
            kept.append((context, pos))
    return kept[:k]


def rows(acts: Floats) -> Rows:
    """The sparse rows of dense activations [tokens latents]."""
    latent, token = np.nonzero(acts.T > 0)
    indptr = np.concatenate([[0], np.cumsum((acts > 0).sum(0))]).astype(np.int64)
    return Rows(indptr, token.astype(np.int64), acts.T[latent, token].astype(np.float32))


def part(acts: npt.NDArray[np.float32], first: int = 0) -> Part:
    """Firings of dense activations [tokens latents], the first of which stands at place `first` of its shard."""
    token, latent = np.nonzero(acts > 0)
    indptr = np.concatenate([[0], np.cumsum((acts > 0).sum(1))]).astype(np.int64)
    columns = (torch.from_numpy(c) for c in (indptr, latent.astype(np.int32), acts[token, latent]))
    return Part(Firings(*columns), torch.ones(acts.shape[1]), np.arange(first, first + len(acts), dtype=np.uint32))


def dimensionality(sae: SparseAutoencoder, i: int, live: npt.NDArray[np.bool_]) -> float | None:
    """D_i over live latents and itself; None without a direction."""
    cos = cosines(sae, i)
    return float(1 / (1 + np.nansum((cos**2)[live]))) if sae.W_dec[i].any() else None


def cosines(sae: SparseAutoencoder, i: int) -> Floats:
    """Of a decoder direction with all others; NaN with itself and where one is missing."""
    rows = sae.W_dec.numpy().astype(np.float64)
    norms = np.linalg.norm(rows, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cos = rows @ rows[i] / norms / norms[i]
    cos[i] = np.nan
    return cos


def evenly(n: int, wanted: int) -> list[int]:
    """The `wanted` contexts spread evenly over n, or all."""
    return [-(-j * n // wanted) for j in range(wanted)] if n > wanted else list(range(n))


def kurtosis(x: Floats) -> Floats:
    """Over the coordinates of each row; 0 where they are equal."""
    d = x - x.mean(1, keepdims=True)
    m2 = (d**2).mean(1)
    return np.where(m2 > 0, (d**4).mean(1) / np.where(m2 > 0, m2, 1) ** 2, 0)


def fidelity(x: Floats, recon: Floats) -> dict[str, float | None]:
    """Of no tokens, or of tokens that do not vary, what is undefined is None."""
    error, spread = ((x - recon) ** 2).sum(1), ((x - x.mean(0)) ** 2).sum() if len(x) else 0.0
    return {
        "mse": error.mean() if len(x) else None,
        "fvu": error.sum() / spread if spread > 1e-12 * (x**2).sum() else None,
        "normalised_mse": (error / (x**2).sum(1)).mean() if len(x) else None,
    }
