"""A few thousand tokens through an SAE before anybody waits for a run: does it reconstruct what it reads?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from sae_backend.core import fidelity
from sae_backend.core.config import RunConfig
from sae_backend.core.language_model import LM
from sae_backend.core.sae import SparseAutoencoder

MAX_DENSE = 1 << 26  # numbers of one dense block of pre-activations
POOR, WRONG = 0.5, 0.9  # fractions of variance unexplained
DENSE = 0.25  # of all latents, on a token
MAX_L0 = RunConfig.max_l0


@dataclass(frozen=True)
class Trial:
    """What the tokens gave, and what that says."""

    tokens: int
    l0: float | None
    #: Mean number of active latents of a token.
    fvu: float | None
    #: Fraction of variance unexplained; 1 is no better than the mean.
    silent: float
    #: Fraction of latents that did not fire; of so few tokens many that are alive do not.
    state: Literal["ok", "warn", "fail"]
    text: str


@torch.no_grad()
def trial(
    sae: SparseAutoencoder, lm: LM, tokens: npt.NDArray[np.uint32], special: set[int], report: Callable[[int], None]
) -> Trial:
    """Run contexts [n ctx_len] one by one through both, special tokens left out."""
    sums, fired = fidelity.Sums(), torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    for context in tokens:
        _add(sums, fired, sae, lm, context, special)
        report(len(context))
    figures = fidelity.figures(sums)
    silent = 1 - float(fired.float().mean())
    state, text = verdict(sae.cfg.d_sae, sums.tokens, figures["l0"], figures["fvu"])
    return Trial(sums.tokens, figures["l0"], figures["fvu"], silent, state, text)


def _add(
    sums: fidelity.Sums, fired: torch.Tensor, sae: SparseAutoencoder, lm: LM, context: npt.NDArray[np.uint32],
    special: set[int],
) -> None:  # fmt: skip
    ids = torch.from_numpy(context.astype(np.int64)).to(lm.device)[None]
    counted = torch.from_numpy(~np.isin(context, sorted(special))).to(lm.device)
    x = lm.capture(ids, str(sae.cfg.hook_name))[0][counted].float()
    out = sae.cfg.hook_name_out
    target = x if out is None else lm.capture(ids, out)[0][counted].float()
    rows = max(1, MAX_DENSE // sae.cfg.d_sae)
    for part, expected in zip(x.split(rows), target.split(rows), strict=True):
        acts = sae.encode(part)
        sums.add_l0(acts.counts().cpu().numpy())
        fired[acts.latent.long()] = True
        sums.add_reconstruction(expected, sae.decode(acts, part))


def verdict(d_sae: int, tokens: int, l0: float | None, fvu: float | None) -> tuple[Literal["ok", "warn", "fail"], str]:
    """What L0 and FVU say to somebody who wants to know whether the checkpoint was read rightly."""
    if not tokens or l0 is None:
        return "warn", "No token could be tried: the text has special tokens alone."
    if l0 == 0:
        return "fail", f"No latent fires on {tokens:,} tokens: it is probably read wrongly. {LOOK}"
    if l0 > MAX_L0 or l0 > DENSE * d_sae:
        return "fail", f"{l0:,.0f} of {d_sae:,} latents fire on a token: it is probably read wrongly. {LOOK}"
    if fvu is None or not np.isfinite(fvu):
        return "fail", f"The reconstruction cannot be compared with what was read, or is not finite. {LOOK}"
    if fvu >= WRONG:
        mean = "worse than" if fvu > 1 else "hardly better than"
        return "fail", f"FVU {fvu:.2f}: {mean} writing the mean everywhere, so it is probably read wrongly. {LOOK}"
    if fvu >= POOR:
        return "warn", f"FVU {fvu:.2f}: it explains little of what it reads. It may belong to another layer. {LOOK}"
    return "ok", f"FVU {fvu:.2f} with {l0:,.1f} latents a token: it reconstructs what it reads."


LOOK = "Check the language model, the hook point, the input normalisation and the activation function."
