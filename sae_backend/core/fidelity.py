"""How well an SAE stands in for the hidden state: L0, MSE, FVU, and cross-entropy with the reconstruction spliced in.

Everything is kept as sums that add up over shards, so the figures do not depend on how a run was cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core import k_curve
from sae_backend.core.config import SaeConfig
from sae_backend.core.language_model import LM

_rotating = Lock()  # lanes ask for the same rotation at once


@dataclass
class Sums:
    """Additive parts of every fidelity figure."""

    tokens: int = 0
    #: Counted tokens encoded.
    l0: dict[int, int] = field(default_factory=dict)
    #: How many tokens have each number of active latents.
    decoded: int = 0
    #: Counted tokens of the decoded sample.
    error: float = 0.0
    #: Σ‖x − x̂‖²
    relative: int = 0
    #: Those of them whose hidden state is not zero.
    relative_error: float = 0.0
    #: Σ‖x − x̂‖²/‖x‖² over those.
    square: float = 0.0
    #: Σ‖x‖²
    total: list[float] = field(default_factory=list)
    #: Σx, [d_out]
    ce_tokens: int = 0
    ce_clean: float = 0.0
    ce_spliced: float = 0.0
    ce_zero: float = 0.0
    #: Σ of the three cross-entropies in nats.
    basis_tokens: int = 0
    basis_kurtosis: float = 0.0
    rotated_kurtosis: float = 0.0
    #: Σ over a sample of the kurtosis over the coordinates of x, and of x rotated at random.
    k_curve: k_curve.Part = field(default_factory=dict)
    #: Vectors that k_curve.py adds up.
    watched: int = 0
    #: Counted tokens whose every pre-activation was looked at.

    def add_l0(self, counts: npt.NDArray[np.int64]) -> None:
        self.tokens += len(counts)
        for value, n in zip(*np.unique(counts, return_counts=True), strict=True):
            self.l0[int(value)] = self.l0.get(int(value), 0) + int(n)

    def add_basis(self, x: Tensor) -> None:
        """x [n d_in], hidden states."""
        self.basis_tokens += len(x)
        self.basis_kurtosis += float(_kurtosis(x).sum())
        self.rotated_kurtosis += float(_kurtosis(x @ rotation(x.shape[1], x.device)).sum())

    def add_reconstruction(self, x: Tensor, recon: Tensor) -> None:
        """x, recon [n d_out] in the language model's own units."""
        error, square = (x - recon).double().square().sum(1), x.double().square().sum(1)
        self.decoded += len(x)
        self.error += float(error.sum())
        some = square > 0
        self.relative += int(some.sum())
        self.relative_error += float((error[some] / square[some]).sum())
        self.square += float(square.sum())
        total = x.double().sum(0).cpu().numpy()
        self.total = (total + np.array(self.total)).tolist() if self.total else total.tolist()


def merged(parts: list[dict[str, Any]]) -> Sums:
    """Sum of what shards stored with dataclasses.asdict."""
    out = Sums()
    for part in parts:
        for name, value in part.items():
            if name == "l0":
                for key, n in value.items():
                    out.l0[int(key)] = out.l0.get(int(key), 0) + n
            elif name == "total":
                out.total = np.add(out.total, value).tolist() if out.total and value else (out.total or value)
            elif name == "k_curve":
                out.k_curve = k_curve.added(out.k_curve, value)
            else:
                setattr(out, name, getattr(out, name) + value)
    return out


def figures(sums: Sums, cfg: SaeConfig | None = None) -> dict[str, Any]:
    """The figures of a run's summary; None where undefined, or beyond what JSON can say.

    Without the SAE's configuration, all but what other k would give.
    """
    return {
        "tokens": sums.tokens,
        "l0": sum(v * n for v, n in sums.l0.items()) / sums.tokens if sums.tokens else None,
        "l0_histogram": sorted([v, n] for v, n in sums.l0.items()),
        **_errors(sums),
        "ce": _cross_entropy(sums),
        "basis_kurtosis": basis(sums),
        "k_curve": k_curve.figures(cfg, sums.k_curve) if cfg else None,
    }


def _errors(sums: Sums) -> dict[str, Any]:
    if not sums.decoded:
        return {"mse": None, "fvu": None, "normalised_mse": None, "fidelity_tokens": 0}
    variance = sums.square - float(np.square(sums.total).sum()) / sums.decoded
    fvu = sums.error / variance if variance > 1e-12 * sums.square else None  # below, rounding of equal states
    return {
        "mse": _finite(sums.error / sums.decoded),
        "fvu": _finite(fvu),
        "normalised_mse": _finite(sums.relative_error / sums.relative if sums.relative else None),
        "fidelity_tokens": sums.decoded,
    }


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


def basis(sums: Sums) -> dict[str, Any] | None:
    """Mean kurtosis over the coordinates of the hidden state, and its control under a random rotation."""
    n = sums.basis_tokens
    return {"plain": sums.basis_kurtosis / n, "rotated": sums.rotated_kurtosis / n, "tokens": n} if n else None


def _cross_entropy(sums: Sums) -> dict[str, Any] | None:
    if not sums.ce_tokens or not math.isfinite(sums.ce_clean + sums.ce_spliced + sums.ce_zero):
        return None
    clean, spliced, zero = (x / sums.ce_tokens for x in (sums.ce_clean, sums.ce_spliced, sums.ce_zero))
    recovered = (zero - spliced) / (zero - clean) if zero != clean else None
    return {"clean": clean, "spliced": spliced, "zero": zero, "recovered": recovered, "tokens": sums.ce_tokens}


@lru_cache(maxsize=4)
def rotation(d: int, device: torch.device) -> Tensor:
    """A fixed orthogonal [d d], uniformly random: under it no coordinate is privileged."""
    with _rotating:
        square = torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        q, r = torch.linalg.qr(square)
        return (q * r.diagonal().sign()).float().to(device)


def _kurtosis(x: Tensor) -> Tensor:
    """Pearson kurtosis [n] over the coordinates of each row, 3 for a Gaussian; 0 where a row is constant."""
    centred = (x - x.mean(1, keepdim=True)).double().square()
    m2, m4 = centred.mean(1), centred.square().mean(1)
    return m4 / m2.square().clamp_min(1e-300)


@torch.no_grad()
def add_cross_entropies(
    sums: Sums, lm: LM, hook_name: str, tokens: Tensor, counted: Tensor, clean: Tensor, recon: Tensor
) -> None:
    """Cross-entropy of predicting the token after each counted one: clean, spliced, zero-ablated.

    clean, recon [batch pos d]: what is at the hook point, and what replaces it at counted positions [batch pos];
    special tokens keep their hidden state.
    """
    where = counted[..., None]
    spliced = torch.where(where, recon.to(clean.dtype), clean)
    zeroed = clean.masked_fill(where, 0.0)
    # one forward for all three: at few tokens its cost is Python's
    logits = lm.resume(tokens.repeat(3, 1), hook_name, torch.cat([clean, spliced, zeroed]))
    of_clean, of_spliced, of_zero = (_ce(x, tokens, counted) for x in logits.split(len(tokens)))
    sums.ce_clean += of_clean
    sums.ce_spliced += of_spliced
    sums.ce_zero += of_zero
    sums.ce_tokens += int(counted[:, :-1].sum())


def _ce(logits: Tensor, tokens: Tensor, counted: Tensor) -> float:
    predicts = counted[:, :-1]
    predicted, next_token = logits[:, :-1][predicts].float(), tokens[:, 1:][predicts]
    return float(torch.nn.functional.cross_entropy(predicted, next_token, reduction="none").double().sum())
