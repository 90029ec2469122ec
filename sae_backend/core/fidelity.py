"""How well an SAE stands in for the hidden state: L0, MSE, FVU, and cross-entropy with the reconstruction spliced in.

Everything is kept as sums that add up over shards, so the figures do not depend on how a run was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core.language_model import LM
from sae_backend.core.sae import SparseAutoencoder


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
    relative_error: float = 0.0
    #: Σ‖x − x̂‖²/‖x‖²
    square: float = 0.0
    #: Σ‖x‖²
    total: list[float] = field(default_factory=list)
    #: Σx, [d_out]
    ce_tokens: int = 0
    ce_clean: float = 0.0
    ce_spliced: float = 0.0
    ce_zero: float = 0.0
    #: Σ of the three cross-entropies in nats.

    def add_l0(self, counts: npt.NDArray[np.int64]) -> None:
        self.tokens += len(counts)
        for value, n in zip(*np.unique(counts, return_counts=True), strict=True):
            self.l0[int(value)] = self.l0.get(int(value), 0) + int(n)

    def add_reconstruction(self, x: Tensor, recon: Tensor) -> None:
        """x, recon [n d_out] in the language model's own units."""
        error, square = (x - recon).double().square().sum(1), x.double().square().sum(1)
        self.decoded += len(x)
        self.error += float(error.sum())
        self.relative_error += float((error / square.clamp_min(1e-30)).sum())
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
            else:
                setattr(out, name, getattr(out, name) + value)
    return out


def figures(sums: Sums) -> dict[str, Any]:
    """The figures of a run's summary; None where undefined."""
    return {
        "tokens": sums.tokens,
        "l0": sum(v * n for v, n in sums.l0.items()) / sums.tokens if sums.tokens else None,
        "l0_histogram": sorted([v, n] for v, n in sums.l0.items()),
        **_errors(sums),
        "ce": _cross_entropy(sums),
    }


def _errors(sums: Sums) -> dict[str, Any]:
    if not sums.decoded:
        return {"mse": None, "fvu": None, "normalised_mse": None, "fidelity_tokens": 0}
    variance = sums.square - float(np.square(sums.total).sum()) / sums.decoded
    return {
        "mse": sums.error / sums.decoded,
        "fvu": sums.error / variance if variance > 0 else None,
        "normalised_mse": sums.relative_error / sums.decoded,
        "fidelity_tokens": sums.decoded,
    }


def _cross_entropy(sums: Sums) -> dict[str, Any] | None:
    if not sums.ce_tokens:
        return None
    clean, spliced, zero = (x / sums.ce_tokens for x in (sums.ce_clean, sums.ce_spliced, sums.ce_zero))
    recovered = (zero - spliced) / (zero - clean) if zero != clean else None
    return {"clean": clean, "spliced": spliced, "zero": zero, "recovered": recovered, "tokens": sums.ce_tokens}


@torch.no_grad()
def add_cross_entropies(sums: Sums, lm: LM, sae: SparseAutoencoder, tokens: Tensor, counted: Tensor) -> None:
    """Cross-entropy of predicting the token after each counted one: clean, spliced, zero-ablated.

    Only counted positions [batch pos] are replaced; special tokens keep their hidden state.
    """
    hook = sae.cfg.hook_name_out or sae.cfg.hook_name
    assert hook is not None and sae.cfg.hook_name is not None
    hidden = lm.capture(tokens, sae.cfg.hook_name).float()
    recon = sae.decode(sae.encode(hidden), hidden).reshape(*hidden.shape[:2], -1)

    def with_recon(there: Tensor) -> Tensor:
        return torch.where(_like(counted, there), recon.reshape(there.shape).to(there.dtype), there)

    def with_zero(there: Tensor) -> Tensor:
        return torch.where(_like(counted, there), torch.zeros_like(there), there)

    sums.ce_clean += _ce(lm.logits(tokens), tokens, counted)
    sums.ce_spliced += _ce(lm.splice(tokens, hook, with_recon), tokens, counted)
    sums.ce_zero += _ce(lm.splice(tokens, hook, with_zero), tokens, counted)
    sums.ce_tokens += int(counted[:, :-1].sum())


def _like(mask: Tensor, hidden: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *[1] * (hidden.ndim - 2))


def _ce(logits: Tensor, tokens: Tensor, counted: Tensor) -> float:
    nats = torch.nn.functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return float(nats[counted[:, :-1]].double().sum())
