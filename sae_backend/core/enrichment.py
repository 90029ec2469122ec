"""Whether a latent's logit effects on a set of tokens differ from those on all tokens, for every latent and set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core.token_sets import TokenSets

_COLUMNS = 8192  # of W_U that are held in float64 at once


class Enrichment:
    """The mean direction of each set's columns of W_U, from which any latent's mean effect is one dot product.

    z is the mean centred effect on the set's m of V tokens, over the standard error that the mean of m tokens drawn
    without replacement has: s · √((V − m) / (m (V − 1))), s the latent's logit std.
    """

    def __init__(self, W_U: Tensor, sets: TokenSets) -> None:
        """W_U [d_model d_vocab], the final norm folded in."""
        d_vocab = W_U.shape[1]
        member = sets.fitted(d_vocab).member
        m = member.sum(1)
        mixed = (m > 0) & (m < d_vocab)
        weight = np.where(mixed[:, None], member / np.maximum(m, 1)[:, None] - 1 / d_vocab, np.nan)
        self._towards = _times(W_U, torch.from_numpy(weight).to(W_U.device))
        self._error = np.sqrt((d_vocab - m) / np.maximum(m * (d_vocab - 1.0), 1))

    def z(self, unit: Tensor, std: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """[n n_sets] of unit decoder rows [n d_model] and their logit std [n]; NaN where undefined."""
        rows = unit.double()
        # row by row, or the order of the sums would depend on how many latents there are
        means = torch.stack([(rows * towards).sum(1) for towards in self._towards], 1).cpu().numpy()
        spread = np.where(std > 0, std, np.nan)[:, None] * self._error
        return (means / spread).astype(np.float32)


def _times(W_U: Tensor, weight: Tensor) -> Tensor:
    """weight [n_sets d_vocab] @ W_U.T in float64, a part of the vocabulary after the other: [n_sets d_model]."""
    out = torch.zeros(len(weight), len(W_U), dtype=torch.float64, device=W_U.device)
    for a in range(0, W_U.shape[1], _COLUMNS):
        out += weight[:, a : a + _COLUMNS] @ W_U[:, a : a + _COLUMNS].double().T
    return out
