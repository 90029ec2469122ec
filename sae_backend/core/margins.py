"""How near a latent comes to firing: by how much its pre-activation exceeds, or misses, what the token asks of it.

With p a pre-activation and θ what it had to exceed, the margin of latent i at token t is

    m_i(t) = (p_i(t) − θ_i(t)) · g_i · s(t)        canonical units: s(t) as for activations
    θ_i(t)                                          g_i
    topk        the k-th largest p of the token, or 0 where that is not positive       ‖d_i‖
      by norm   the same of p·‖d_i‖, compared with p_i·‖d_i‖                           the output scale
    groupmax    the largest p of the latent's group, or 0                              ‖d_i‖
    jumprelu, batchtopk    its threshold, or 0                                         ‖d_i‖
    gated       the larger of −b_gate and −b_mag/exp(r_mag)                            exp(r_mag)·‖d_i‖
    standard, tanh_relu    0                                                           ‖d_i‖

Where the latent fires it is how far above the cut it comes; 0 where it ties with what fired in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import margin_kernels
from sae_backend.core.activations import StoredShard
from sae_backend.core.results import MissesByLatent
from sae_backend.core.sae import SparseActs, SparseAutoencoder

_ON_DEVICE = 2**26  # margins held at once on an accelerator
N_MISSES = 5  # contexts in which it came closest, kept of each latent
_SHIFT = {torch.bfloat16: 16, torch.float32: 0}  # bits short of a float32's
_BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32}
Floats = npt.NDArray[np.float32]


class Margins:
    """One SAE's rule, ready to be applied to sampled tokens; about 3 × d_sae × 4 bytes."""

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae = sae
        self.ranked = sae.cfg.architecture == "topk" and sae.rank_scale is not None
        self.weight = sae.rank_scale if self.ranked and sae.rank_scale is not None else torch.ones_like(sae.b_enc)
        self.need = _need(sae).contiguous()
        self.groups = int(sae.cfg.k or 1) if sae.cfg.architecture == "groupmax" else 1

    def gain(self) -> npt.NDArray[np.float64]:
        """[d_sae], what brings a margin on the checkpoint's scale to the canonical one; NaN without a direction."""
        norm = self.sae.decoder_norm.double()
        gain = torch.full_like(norm, self.sae.cfg.output_scale) if self.ranked else norm
        if self.sae.r_mag is not None:
            gain = gain * self.sae.r_mag.double().exp()
        return torch.where(norm > 0, gain, torch.nan).cpu().numpy()

    def closest(
        self, pre_acts: Tensor, acts: SparseActs, scale: Tensor | None, contexts: Sequence[int]
    ) -> Iterator[tuple[Floats, npt.NDArray[np.int32]]]:
        """Of each context its latents' largest margins without g_i [d_sae], and at which of its tokens, the first.

        pre_acts [m d_sae] and what fires of it; contexts: how many of the m tokens belong to each.
        """
        floor = self._floor(acts)
        s = floor.new_ones(len(floor)) if scale is None else scale.float()
        on_host = pre_acts.device.type == "cpu"
        a = 0
        for n in contexts:
            own = slice(a, a + n)
            yield (self._on_host if on_host else self.on_device)(pre_acts[own], floor[own], s[own])
            a += n

    def _floor(self, acts: SparseActs) -> Tensor:
        """[m groups], what a token asks of all latents of a group."""
        m, token, latent = acts.shape[0], acts.token.long(), acts.latent.long()
        if self.sae.cfg.architecture == "groupmax":
            floor = acts.value.new_zeros(m, self.groups)
            floor[token, latent // (acts.shape[1] // self.groups)] = acts.value
            return floor
        if self.sae.cfg.architecture != "topk":
            return acts.value.new_zeros(m, 1)
        ranked = acts.value * self.weight[latent]
        least = ranked.new_full((m,), torch.inf).scatter_reduce(0, token, ranked, "amin")
        return torch.where(acts.counts() == int(self.sae.cfg.k or 0), least, 0.0)[:, None]

    def _on_host(self, pre_acts: Tensor, floor: Tensor, scale: Tensor) -> tuple[Floats, npt.NDArray[np.int32]]:
        rows = pre_acts if pre_acts.dtype in _BITS else pre_acts.float()
        bits = rows.contiguous().view(_BITS[rows.dtype]).numpy()
        best, where = np.full(bits.shape[1], -np.inf, np.float32), np.zeros(bits.shape[1], np.int32)
        asked = self.weight.numpy(), self.need.numpy(), floor.contiguous().numpy(), scale.contiguous().numpy()
        margin_kernels.closest(bits, _SHIFT[rows.dtype], *asked, best, where)
        return best, where

    def on_device(self, pre_acts: Tensor, floor: Tensor, scale: Tensor) -> tuple[Floats, npt.NDArray[np.int32]]:
        """With torch alone: what an accelerator does, and what the host's loop is compared with."""
        best: list[Tensor] = []
        where: list[Tensor] = []
        step, d_sae = max(1, _ON_DEVICE // len(pre_acts)), pre_acts.shape[1]
        for own in (slice(a, a + step) for a in range(0, d_sae, step)):
            some = torch.arange(d_sae, device=pre_acts.device)[own] // (d_sae // self.groups)
            margin = (pre_acts[:, own].float() * self.weight[own] - floor[:, some] - self.need[own]) * scale[:, None]
            best.append(margin.amax(0))
            where.append((margin == best[-1]).int().argmax(0).int())  # max leaves open which of equal ones it takes
        return torch.cat(best).cpu().numpy(), torch.cat(where).cpu().numpy()


class Closest:
    """Each latent's largest margins, one a context, largest first and of equal ones the earlier."""

    def __init__(self, d_sae: int, n: int, places: npt.DTypeLike = np.uint32) -> None:
        self.margin = np.full((d_sae, n), -np.inf, np.float32)
        self.token: npt.NDArray[Any] = np.zeros((d_sae, n), places)

    def add(self, margin: Floats, token: npt.NDArray[Any]) -> None:
        """[d_sae] of one context, behind all that were added."""
        if self.margin.size:
            margin_kernels.insert(margin, token, self.margin, self.token)


class Nearest:
    """The largest margins of all latents over a run; 12 × N_MISSES × d_sae bytes."""

    def __init__(self, closest: Closest, ctx_len: int, gain: npt.NDArray[np.float64]) -> None:
        """closest has tokens counted over the whole run."""
        self.token, self.ctx_len = closest.token, ctx_len
        margin = closest.margin.astype(np.float64) * gain[:, None]
        self.margin = np.where(np.isfinite(margin), margin, np.nan)

    @classmethod
    def read(cls, shards: Sequence[StoredShard], ctx_len: int, gain: npt.NDArray[np.float64]) -> Nearest | None:
        """Of shards in the order of their contexts; None where one was stored before there were margins."""
        closest = Closest(len(gain), N_MISSES, np.int64)
        for shard in shards:
            margin, token = shard.sampled("margin"), shard.sampled("margin_token")
            if margin is None or token is None:
                return None
            for m, t in zip(margin.T, token.T.astype(np.int64), strict=True) if margin.size else ():
                closest.add(np.ascontiguousarray(m), np.ascontiguousarray(t) + shard.lo * ctx_len)
        return cls(closest, ctx_len, gain)

    def largest(self, lo: int, hi: int) -> npt.NDArray[np.float64]:
        """[hi - lo], NaN where undefined."""
        return self.margin[lo:hi, 0]

    def misses(self, lo: int, hi: int, dead: npt.NDArray[np.bool_]) -> MissesByLatent:
        """Where latents lo ≤ i < hi came closest, of those that are dead [hi - lo]."""
        margin, token = np.where(dead[:, None], self.margin[lo:hi], np.nan), self.token[lo:hi]
        context, peak = (token // self.ctx_len).astype(np.uint32), (token % self.ctx_len).astype(np.uint16)
        return MissesByLatent(context, peak, margin.astype(np.float32))


def _need(sae: SparseAutoencoder) -> Tensor:
    """[d_sae] what a latent's own weights ask of its pre-activation."""
    if sae.threshold is not None:
        return sae.threshold.float().clamp_min(0.0)
    if sae.b_gate is None or sae.r_mag is None or sae.b_mag is None:
        return torch.zeros_like(sae.b_enc)
    return torch.maximum(-sae.b_gate, -sae.b_mag / sae.r_mag.exp())


def least_acts(sae: SparseAutoencoder) -> Tensor | None:
    """[d_sae] the canonical activation from which a latent fires, for a token of scale 1; None without thresholds."""
    if sae.threshold is None and sae.b_gate is None:
        return None
    least = _need(sae)
    if sae.r_mag is not None and sae.b_mag is not None:
        least = least * sae.r_mag.exp() + sae.b_mag
    return least.clamp_min(0.0) * sae.decoder_norm
