"""Whether a peer computes the activations that we compute; imported in the peers' environments too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CONTEXTS = 4  # on which activations are compared

Dense = npt.NDArray[np.float32]


def sample(tokens: str | Path) -> npt.NDArray[np.int64]:
    return np.load(tokens)[:CONTEXTS].astype(np.int64)


def save(path: Path, acts: Dense) -> None:
    """Our activations of the sample, [tokens d_sae], kept sparse."""
    token, latent = np.nonzero(acts)
    np.savez(path, token=token, latent=latent, act=acts[token, latent], shape=acts.shape)


def load(path: str | Path) -> Dense:
    with np.load(path) as kept:
        acts = np.zeros(kept["shape"], np.float32)
        acts[kept["token"], kept["latent"]] = kept["act"]
    return acts


def difference(ours: Dense, theirs: Dense) -> dict[str, Any]:
    """The largest difference where both fire, over the largest activation; and how many fire in one of both only."""
    both = (ours > 0) & (theirs > 0)
    either = (ours > 0) | (theirs > 0)
    return {
        "max_difference": float(np.abs(ours - theirs)[both].max() / ours.max()),
        "fires_in_one_only": int(either.sum() - both.sum()),
        "fires": int(either.sum()),
    }
