"""One sparse autoencoder or transcoder: encode, decode, and what its activations mean in the model's units.

With n the input normalisation and s the constant scales of the configuration,

    pre_acts = normalise(x).x @ W_enc + b_enc        normalise(x).x = s_in * n(x)  [- b_dec]
               [* sigmoid(normalise(x).x @ W_glu + b_glu)]
    acts     = select(pre_acts)
    x_hat    = n^-1(s_out * (acts @ W_dec + b_dec))  [+ x @ W_skip]

The selection rule of every architecture is the table SELECT at the end of the first part, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from . import kernels, validity
from .config import SaeConfig

LAYER_NORM_EPS = 1e-5
HASH_ROWS = 1024
TENSORS = (
    "W_enc", "b_enc", "W_dec", "b_dec", "threshold", "b_gate", "r_mag", "b_mag", "W_skip", "W_glu", "b_glu"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class SparseActs:
    """The active latents of n tokens, sorted by token and, within a token, by latent."""

    token: Tensor
    #: [nnz] int64, row number.
    latent: Tensor
    #: [nnz] int32.
    value: Tensor
    #: [nnz] float32, all positive unless the caller changed them.
    shape: tuple[int, int]
    #: (n, d_sae)

    def dense(self) -> Tensor:
        """Return [n d_sae] with zeros for what is not active."""
        out = self.value.new_zeros(self.shape)
        out.view(-1)[self.token * self.shape[1] + self.latent] = self.value
        return out

    def counts(self) -> Tensor:
        """Return [n] int64, the number of active latents of each token (its L0)."""
        return torch.bincount(self.token, minlength=self.shape[0])


@dataclass(frozen=True, eq=False)
class Undo:
    """What maps a reconstruction of n tokens back to the language model's own scale."""

    n: int
    mean: Tensor | None = None
    #: [n 1], added after scaling.
    scale: Tensor | None = None
    #: [n 1], std of the token (layer_norm) or |x|/sqrt(d_in) (constant_norm).
    skipped: Tensor | None = None
    #: [n d_in], the raw input, kept only where W_skip reads it.

    def apply(self, recon: Tensor) -> Tensor:
        """Return scale * recon + mean, [n d_out]."""
        if self.scale is not None:
            recon = recon * self.scale
        return recon if self.mean is None else recon + self.mean


@dataclass(frozen=True, eq=False)
class Normalised:
    """What the encoder matmul reads, and how to go back."""

    x: Tensor
    #: [n d_in] float32.
    undo: Undo


def _gather(active: Tensor, values: Tensor) -> SparseActs:
    token, latent = active.nonzero(as_tuple=True)
    return SparseActs(token, latent.int(), values[token, latent], (active.shape[0], active.shape[1]))


def _standard(sae: SparseAutoencoder, pre_acts: Tensor) -> SparseActs:
    return _gather(pre_acts > 0, pre_acts)


def _tanh_relu(sae: SparseAutoencoder, pre_acts: Tensor) -> SparseActs:
    return _gather(pre_acts > 0, pre_acts.tanh())


def _threshold(sae: SparseAutoencoder, pre_acts: Tensor) -> SparseActs:
    assert sae.threshold is not None
    return _gather((pre_acts > sae.threshold) & (pre_acts > 0), pre_acts)


def _gated(sae: SparseAutoencoder, pre_acts: Tensor) -> SparseActs:
    """Gate on pre_acts + b_gate > 0, with value pre_acts * exp(r_mag) + b_mag where that is positive too."""
    assert sae.b_gate is not None and sae.r_mag is not None and sae.b_mag is not None
    magnitude = pre_acts * sae.r_mag.exp() + sae.b_mag
    return _gather((pre_acts + sae.b_gate > 0) & (magnitude > 0), magnitude)


def _topk(sae: SparseAutoencoder, pre_acts: Tensor) -> SparseActs:
    """Keep the k largest of each token, of equal ones the lowest index, and of those the positive."""
    assert sae.cfg.k is not None
    ranked = pre_acts if sae.rank_scale is None else pre_acts * sae.rank_scale
    latent = top_k(ranked, sae.cfg.k).sort(dim=1).values
    values = pre_acts.gather(1, latent)
    token, column = (values > 0).nonzero(as_tuple=True)
    return SparseActs(
        token, latent[token, column].int(), values[token, column], (len(pre_acts), pre_acts.shape[1])
    )


def _groupmax(sae: SparseAutoencoder, pre_acts: Tensor) -> SparseActs:
    """Keep the largest of each of k groups of neighbouring latents, of equal ones the lowest index, if positive."""
    assert sae.cfg.k is not None
    grouped = pre_acts.reshape(len(pre_acts), sae.cfg.k, -1)  # [n d_sae] -> [n k d_sae/k]
    values, at = grouped.max(dim=2)
    if pre_acts.device.type != "cpu":  # where max leaves open which of equal values it takes
        at = (grouped == values.unsqueeze(2)).int().argmax(dim=2)
    latent = at + torch.arange(sae.cfg.k, device=at.device) * grouped.shape[2]
    token, group = (values > 0).nonzero(as_tuple=True)
    return SparseActs(token, latent[token, group].int(), values[token, group], (len(pre_acts), pre_acts.shape[1]))


def top_k(values: Tensor, k: int) -> Tensor:
    """Return [n k] columns of the k largest values of each row, of equal values the lowest columns, unsorted.

    torch.topk leaves open which of equal values it takes; only rows with a tie at rank k are sorted again.
    """
    top = values.topk(min(k + 1, values.shape[1]), dim=1)
    index = top.indices[:, :k]
    if k < values.shape[1]:
        tied = top.values[:, k - 1] == top.values[:, k]
        if tied.any():
            index[tied] = values[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return index


SELECT: dict[str, Callable[[SparseAutoencoder, Tensor], SparseActs]] = {
    "standard": _standard,
    "tanh_relu": _tanh_relu,
    "topk": _topk,
    "jumprelu": _threshold,
    "batchtopk": _threshold,
    "gated": _gated,
    "groupmax": _groupmax,
}


@dataclass(eq=False)
class SparseAutoencoder:
    """Weights in float32, oriented as in SAELens, on the checkpoint's scale; ValueError on wrong shapes."""

    cfg: SaeConfig
    W_enc: Tensor
    #: [d_in d_sae], possibly a transposed view.
    b_enc: Tensor
    #: [d_sae], zero in a gated SAE.
    W_dec: Tensor
    #: [d_sae d_out], contiguous.
    b_dec: Tensor
    #: [d_out]
    threshold: Tensor | None = None
    #: [d_sae], jumprelu and batchtopk.
    b_gate: Tensor | None = None
    r_mag: Tensor | None = None
    b_mag: Tensor | None = None
    #: [d_sae] each, gated.
    W_skip: Tensor | None = None
    #: [d_in d_out], a transcoder's linear path from the raw input.
    W_glu: Tensor | None = None
    #: [d_in d_sae], the gate that pre_acts are multiplied with.
    b_glu: Tensor | None = None
    #: [d_sae]
    since_fired: Tensor | None = None
    #: [d_sae] int64 on the host, steps of training since each fired, where the checkpoint has counted them.
    _recent: Undo | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        validity.check(self.cfg, {name: None if t is None else tuple(t.shape) for name, t in self._all()})

    def normalise(self, x: Tensor) -> Normalised:
        """Return what the encoder matmul reads for x [.. d_in], flattened to [n d_in] float32."""
        flat = self._flatten(x)
        undo = self._statistics(flat)
        if undo.mean is not None:
            flat = flat - undo.mean
        if undo.scale is not None:
            flat = flat / (undo.scale + (LAYER_NORM_EPS if self.cfg.input_norm == "layer_norm" else 0.0))
        if self.cfg.input_scale != 1.0:
            flat = flat * self.cfg.input_scale
        return Normalised(flat - self.b_dec if self.cfg.subtract_b_dec else flat, undo)

    def select(self, pre_acts: Tensor) -> SparseActs:
        """Apply the activation function to pre_acts [n d_sae]."""
        return SELECT[self.cfg.architecture](self, pre_acts)

    def encode(self, x: Tensor) -> SparseActs:
        """Return the active latents of x [.. d_in], its tokens flattened, on the checkpoint's own scale."""
        normalised = self.normalise(x)
        self._recent = normalised.undo
        pre_acts = torch.addmm(self.b_enc, normalised.x, self.W_enc)
        if self.W_glu is not None and self.b_glu is not None:
            pre_acts = pre_acts * torch.addmm(self.b_glu, normalised.x, self.W_glu).sigmoid()
        return self.select(pre_acts)

    def encode_dense(self, x: Tensor) -> Tensor:
        """Return the activations [.. d_sae] of x [.. d_in]."""
        return self.encode(x).dense().reshape(*self._leading(x), self.cfg.d_sae)

    def decode(self, acts: SparseActs | Tensor, x: Tensor | None = None) -> Tensor:
        """Return the reconstruction [.. d_out] ([n d_out] of SparseActs) in the language model's own units.

        Where the input normalisation or W_skip needs the input and x is None, that of the most recent encode
        is used if it had as many tokens; otherwise ValueError.
        """
        leading = (acts.shape[0],) if isinstance(acts, SparseActs) else acts.shape[:-1]
        undo = self._undo(math.prod(leading), x)
        recon = self._sum_rows(acts) if isinstance(acts, SparseActs) else self._multiply(acts)
        recon = undo.apply(recon if self.cfg.output_scale == 1.0 else recon * self.cfg.output_scale)
        if self.W_skip is not None and undo.skipped is not None:
            recon = torch.addmm(recon, undo.skipped, self.W_skip)
        return recon.reshape(*leading, self.cfg.d_out)

    @cached_property
    def rank_scale(self) -> Tensor | None:
        """[d_sae], what topk multiplies pre_acts with before comparing (and only for comparing), or None."""
        return self.W_dec.norm(dim=1) if self.cfg.rank_by_decoder_norm else None

    @cached_property
    def decoder_norm(self) -> Tensor:
        """[d_sae], the latent's factor of the canonical scale: |W_dec row| in the language model's own units.

        The canonical activation of token t is acts[t, i] * canonical_scale(x)[t] * decoder_norm[i].
        """
        return self.W_dec.norm(dim=1) * self.cfg.output_scale

    def canonical_scale(self, x: Tensor) -> Tensor:
        """Return [n], each token's factor of the canonical scale: 1 without a per-token input norm."""
        flat = self._flatten(x)
        scale = self._statistics(flat).scale
        return flat.new_ones(len(flat)) if scale is None else scale.squeeze(1)

    def identity(self) -> str:
        """Return 64 hex digits of what is computed and where, whatever the names, metadata and format."""
        digest = hashlib.sha256(json.dumps(_computed_fields(self.cfg), sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name}{list(tensor.shape)}".encode())
            for rows in tensor.split(HASH_ROWS):
                digest.update(rows.detach().cpu().contiguous().numpy().astype("<f4", copy=False))
        return digest.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights this architecture has, by name."""
        return {name: tensor for name, tensor in self._all() if tensor is not None}

    def to(self, device: torch.device | str) -> SparseAutoencoder:
        """Return this SAE with its weights on device, float32 as ever; itself if they are there already."""
        if self.device == torch.device(device):
            return self
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    @property
    def device(self) -> torch.device:
        return self.W_dec.device

    def _all(self) -> Iterator[tuple[str, Tensor | None]]:
        return ((name, getattr(self, name)) for name in TENSORS)

    def _leading(self, x: Tensor) -> tuple[int, ...]:
        """Return the shape of x without d_in, or without [heads d_head] at a hook_z point."""
        if x.ndim and x.shape[-1] == self.cfg.d_in:
            return tuple(x.shape[:-1])
        if x.ndim > 1 and x.shape[-2] * x.shape[-1] == self.cfg.d_in:
            return tuple(x.shape[:-2])
        raise ValueError(f"x is {validity.times(x.shape)}; this SAE reads vectors of {self.cfg.d_in} numbers.")

    def _flatten(self, x: Tensor) -> Tensor:
        self._leading(x)
        return x.reshape(-1, self.cfg.d_in).float()

    def _statistics(self, flat: Tensor) -> Undo:
        skipped = None if self.W_skip is None else flat
        if self.cfg.input_norm == "layer_norm":
            return Undo(len(flat), *mean_and_std(flat), skipped)
        if self.cfg.input_norm == "centred":
            return Undo(len(flat), flat.mean(1, keepdim=True), None, skipped)
        if self.cfg.input_norm == "constant_norm":
            # A zero vector stays zero instead of becoming NaN.
            norm = flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
            return Undo(len(flat), None, norm / math.sqrt(self.cfg.d_in), skipped)
        return Undo(len(flat), skipped=skipped)

    def _undo(self, n: int, x: Tensor | None) -> Undo:
        if self.cfg.input_norm == "none" and self.W_skip is None:
            return Undo(n)
        undo = self._statistics(self._flatten(x)) if x is not None else self._recent
        if undo is None or undo.n != n:
            raise ValueError(f"Decoding {n} tokens of this SAE needs their input: pass x with {n} rows.")
        return undo

    def _multiply(self, acts: Tensor) -> Tensor:
        if acts.shape[-1] != self.cfg.d_sae:
            raise ValueError(f"acts is {validity.times(acts.shape)}; this SAE has {self.cfg.d_sae} latents.")
        return torch.addmm(self.b_dec, acts.reshape(-1, self.cfg.d_sae).float(), self.W_dec)

    def _sum_rows(self, acts: SparseActs) -> Tensor:
        counts = acts.counts()
        starts = (counts.cumsum(0) - counts).int()
        summed = embedding_bag(acts.latent, self.W_dec, starts, mode="sum", per_sample_weights=acts.value)
        return summed + self.b_dec


def mean_and_std(flat: Tensor) -> tuple[Tensor, Tensor]:
    """[n 1] each, n - 1 in std; on the host by loops over each row while it is in cache."""
    if flat.device.type != "cpu":
        return mean_and_std_by_torch(flat)
    mean, std = torch.empty(2, len(flat), 1)
    kernels.mean_and_std(flat.detach().contiguous().numpy(), mean.numpy(), std.numpy())
    return mean, std


def mean_and_std_by_torch(flat: Tensor) -> tuple[Tensor, Tensor]:
    mean = flat.mean(1, keepdim=True)
    return mean, torch.linalg.vector_norm(flat - mean, dim=1, keepdim=True) / math.sqrt(max(1, flat.shape[1] - 1))


def _computed_fields(cfg: SaeConfig) -> dict[str, object]:
    """Return the fields that change what is computed; batchtopk is jumprelu with equal thresholds."""
    names = (
        "k",
        "input_norm",
        "input_scale",
        "output_scale",
        "subtract_b_dec",
        "rank_by_decoder_norm",
        "hook_name",
        "hook_name_out",
    )
    architecture = "jumprelu" if cfg.architecture == "batchtopk" else cfg.architecture
    return {"architecture": architecture} | {name: getattr(cfg, name) for name in names}
