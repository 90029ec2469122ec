"""The basis kurtosis of the residual stream before the first block and after each."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sae_backend.core.fidelity import Sums, basis
from sae_backend.core.language_model import LM

CONTEXTS = 32  # of a data set, evenly spaced: with 128 tokens each, the mean is known to a sixtieth of their spread


@torch.no_grad()
def basis_by_layer(lm: LM, tokens: npt.NDArray[np.uint32], special: set[int]) -> dict[str, Any]:
    """Mean kurtosis over the coordinates of each layer's hidden states, and rotated; tokens [n ctx_len].

    One forward a context, whatever the number of layers; special tokens are left out.
    """
    n_layers = int(lm.bridge.cfg.n_layers)
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(n_layers))]
    sums = [Sums() for _ in names]
    for context in tokens:
        counted = torch.from_numpy(~np.isin(context, sorted(special))).to(lm.device)
        ids = torch.from_numpy(context.astype(np.int64)).to(lm.device)
        for of, hidden in zip(sums, lm.captures(ids[None], names), strict=True):
            of.add_basis(hidden[0][counted].float())
    found = [basis(of) or {"plain": None, "rotated": None, "tokens": 0} for of in sums]
    layers = [{"hook_name": n, "plain": f["plain"], "rotated": f["rotated"]} for n, f in zip(names, found, strict=True)]
    return {"tokens": found[0]["tokens"], "layers": layers}
