"""What the worked examples of docs/statistics.md call: small SAEs and pairs of them, given by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae_backend.core import k_curve, matching
from sae_backend.core.alignment import row_cosines
from sae_backend.core.cofiring import Cofiring
from sae_backend.core.compare import STITCHED, Half, Pair
from sae_backend.core.config import Architecture, SaeConfig
from sae_backend.core.decoder import Decoder, DecoderFacts
from sae_backend.core.encode import bounded_topk
from sae_backend.core.language_model import Unembedding
from sae_backend.core.margins import Margins, least_acts
from sae_backend.core.matching import CLASSES, Side
from sae_backend.core.results import NeighboursByLatent
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.token_sets import TokenSets
from sae_backend.packing import Neighbours, Together

_Rows = list[list[float]]


def facts_of(W_dec: _Rows, W_U: _Rows) -> DecoderFacts:
    """All latents alive, encoders along decoders; one token set, the first half of the vocabulary."""
    unembedding = torch.tensor(W_U).float()
    half = np.arange(unembedding.shape[1]) < unembedding.shape[1] // 2
    decoder = Decoder(
        _tied(W_dec), Unembedding(unembedding), sets=TokenSets(("half",), ("the first half",), half[None])
    )
    live = torch.ones(len(W_dec), dtype=torch.bool)
    return decoder.facts(0, len(W_dec), live, decoder.directions.products(live))


def margins_of(architecture: Architecture, norms: Sequence[float], x: _Rows, **settings: Any) -> np.ndarray:
    """The largest of each latent over tokens x; latent i reads coordinate i and writes it `norms[i]` long."""
    sae, hidden = _straight(architecture, norms, **settings), torch.tensor(x).float()
    margins = Margins(sae)
    [(margin, _)] = margins.closest(hidden @ sae.W_enc, sae.encode(hidden), None, [len(x)])
    return margin * margins.gain()


def thresholds_of(architecture: Architecture, norms: Sequence[float], **settings: Any) -> np.ndarray:
    least = least_acts(_straight(architecture, norms, **settings))
    assert least is not None
    return least.numpy()


def k_curve_of(k: int, x: _Rows) -> dict[str, Any]:
    """Of orthonormal latents that read tokens x as they are."""
    sae, hidden = _straight("topk", [1.0] * len(x[0]), k=k), torch.tensor(x).float()
    wanted = k_curve.ks(sae.cfg)
    sums = k_curve.part(sae, hidden, hidden, bounded_topk(hidden @ sae.W_enc, max(wanted)), wanted)
    told = k_curve.figures(sae.cfg, sums)
    assert told is not None
    return told


def together(first: Sequence[int], second: Sequence[int]) -> Together:
    """What the first of two latents has, given the tokens on which each fires."""
    fires = np.zeros((max([*first, *second]) + 1, 2), bool)
    fires[list(first), 0] = fires[list(second), 1] = True
    other = Neighbours(np.array([1]), np.array([0.0]), np.array([1]), np.array([0.0]))
    sample = Cofiring(fires.sum(1), np.nonzero(fires)[1].astype(np.uint32), 2)
    return sample.of(0, 1, NeighboursByLatent.of([other]))[0]


def cosines_to_final(W_dec: _Rows, final: _Rows) -> np.ndarray:
    return row_cosines(torch.tensor(W_dec).float(), torch.tensor(final).float())


def side(best: Sequence[int], cos: Sequence[float]) -> Side:
    """One SAE, all of whose latents fired."""
    n = np.zeros(len(best), np.uint32)
    return Side(np.array(best, np.uint32)[:, None], np.array(cos, np.float32)[:, None], np.ones(len(best), bool), n, n)


def classes(small: Side, large: Side, **thresholds: float) -> tuple[list[str], ...]:
    return tuple([CLASSES[code] for code in codes] for codes in matching.classify(small, large, **thresholds))


def stitched(x: _Rows) -> list[float]:
    """FVU on tokens x of an SAE along the first coordinate, alone and with all of one along the second."""
    a, b = (
        Half.of(_tied([row]), np.zeros((1, 1), np.uint32), np.zeros((1, 1), np.float32)) for row in ([1, 0], [0, 1])
    )
    hidden, pair = torch.tensor(x).float(), Pair(a, b, None, torch.float32, set())  # type: ignore[arg-type]
    of_a, of_b = (encoder(hidden) for encoder in pair.encoders)
    told = pair._tally(a, of_a, b, of_b, hidden, hidden).figures()
    return [told["fvu"], told["stitched"][STITCHED.index(None)]["fvu"]]


def _tied(W_dec: _Rows) -> SparseAutoencoder:
    rows = torch.tensor(W_dec).float()
    n, d = rows.shape
    cfg = SaeConfig("standard", d, n, d)
    return SparseAutoencoder(cfg, rows.T.contiguous(), torch.zeros(n), rows, torch.zeros(d))


def _straight(
    architecture: Architecture, norms: Sequence[float], k: int | None = None, threshold: float | None = None
) -> SparseAutoencoder:
    n = len(norms)
    cfg = SaeConfig(architecture, n, n, n, k=k)
    least = None if threshold is None else torch.full((n,), threshold)
    W_dec = torch.diag(torch.tensor(norms).float())
    return SparseAutoencoder(cfg, torch.eye(n), torch.zeros(n), W_dec, torch.zeros(n), threshold=least)
