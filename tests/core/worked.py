"""What the worked examples of docs/statistics.md call: small SAEs and pairs of them, given by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from browser import frontier_chart
from browser.queries import training
from browser.queries.compare_classes import Both
from sae_backend.core import cofiring, compare, k_curve, matching, precision
from sae_backend.core.activations import Rows
from sae_backend.core.alignment import row_cosines
from sae_backend.core.cofiring import Cofiring
from sae_backend.core.compare import STITCHED, Half, Pair
from sae_backend.core.config import Architecture, RunConfig, SaeConfig
from sae_backend.core.decoder import Decoder, DecoderFacts
from sae_backend.core.encode import bounded_topk
from sae_backend.core.examples import choose
from sae_backend.core.language_model import Unembedding
from sae_backend.core.margins import N_MISSES, Closest, Margins, Nearest, least_acts
from sae_backend.core.matching import CLASSES, Side
from sae_backend.core.neighbours import Directions
from sae_backend.core.results import NeighboursByLatent
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.token_sets import TokenSets, token_sets
from sae_backend.packing import RANDOM, TOP, Neighbours, Together

_Rows = list[list[float]]


def facts_of(W_dec: _Rows, W_U: _Rows, since_fired: Sequence[float] | None = None) -> DecoderFacts:
    """All latents alive, encoders along decoders; one token set, the first half of the vocabulary."""
    sae = _tied(W_dec)
    sae.since_fired = None if since_fired is None else torch.tensor(since_fired)
    unembedding = torch.tensor(W_U).float()
    half = np.arange(unembedding.shape[1]) < unembedding.shape[1] // 2
    decoder = Decoder(sae, Unembedding(unembedding), sets=TokenSets(("half",), ("the first half",), half[None]))
    live = torch.ones(len(W_dec), dtype=torch.bool)
    return decoder.facts(0, len(W_dec), live, decoder.directions.products(live))


def margins_of(architecture: Architecture, norms: Sequence[float], x: _Rows, **settings: Any) -> np.ndarray:
    """The largest of each latent over tokens x; latent i reads coordinate i and writes it `norms[i]` long."""
    sae, hidden = _straight(architecture, norms, **settings), torch.tensor(x).float()
    margins = Margins(sae)
    [(margin, _)] = margins.closest(hidden @ sae.W_enc, sae.encode(hidden), None, [len(x)])
    return margin * margins.gain()


def misses_of(latent: int, x: list[_Rows]) -> list[tuple[int, int, float]]:
    """(context, position, margin) where a latent that never fires came closest; TopK, k = 1, contexts x."""
    sae, hidden = _straight("topk", [1.0] * len(x[0][0]), k=1), torch.tensor(x).float().flatten(0, 1)
    margins, (ctx_len, d_sae) = Margins(sae), (len(x[0]), len(x[0][0]))
    closest = Closest(d_sae, N_MISSES, np.int64)
    found = margins.closest(hidden @ sae.W_enc, sae.encode(hidden), None, [ctx_len] * len(x))
    for context, (margin, token) in enumerate(found):
        closest.add(margin, token.astype(np.int64) + context * ctx_len)
    nearest = Nearest(closest, ctx_len, margins.gain())
    misses = nearest.misses(0, d_sae, np.arange(d_sae) == latent)[latent]
    return list(zip(misses.context.tolist(), misses.peak.tolist(), misses.margin.tolist(), strict=True))


def canonical(norm: float, x: Sequence[float], reads: float | None = None, **settings: Any) -> float:
    """The activation that pages show of one latent along the last coordinate (or the first) of a token x."""
    d, along = len(x), int(reads is not None)
    W_enc = torch.zeros(d, 1)
    W_enc[along] = 1.0
    cfg = SaeConfig("standard", d, 1, d, **settings)
    sae = SparseAutoencoder(cfg, W_enc, torch.zeros(1), norm * W_enc.T.contiguous(), torch.zeros(d))
    token = torch.tensor([x]).float()
    return float(sae.encode(token).value[0] * sae.decoder_norm[0] * sae.canonical_scale(token)[0])


def contexts_of(tokens: Sequence[Sequence[int]], acts: _Rows, latent: int = 0) -> dict[Any, list[tuple[int, int]]]:
    """(context, position) of what is shown of a latent: "top" in order, "random" and bands 1 … 10 by place."""
    flat = np.array(acts, np.float32).ravel()
    at = np.flatnonzero(flat)
    rows = Rows(np.array([0, len(at)]), at.astype(np.int64), flat[at])
    shown = choose(rows, latent, np.array([list(c) for c in tokens], np.uint32), RunConfig())[0]
    out: dict[Any, list[tuple[int, int]]] = {}
    for kind, context, peak in zip(shown.interval.tolist(), shown.context.tolist(), shown.peak.tolist(), strict=True):
        out.setdefault({TOP: "top", RANDOM: "random"}.get(kind, kind), []).append((context, peak))
    return {kind: places if kind == "top" else sorted(places) for kind, places in out.items()}


def cofiring_stride(l0: Sequence[int], n_tokens: int) -> int:
    return cofiring._stride(np.array(l0), n_tokens)


def sets_of(token: str) -> list[str]:
    """The names of the sets a token is in."""
    sets = token_sets([token.encode()], [False])
    return [name for name, there in zip(sets.names, sets.member[:, 0], strict=True) if there]


def compared(rough: dict[int, float], exact: dict[int, float]) -> dict[str, float | None]:
    """Of firings by place."""
    places, acts = ([np.array(list(x)) for x in (rough, exact)], [np.array(list(x.values())) for x in (rough, exact)])
    return precision.compared(places[0], acts[0], places[1], acts[1])


def pareto_optimal(points: Sequence[tuple[float, float]], metric: str) -> list[tuple[float, float]]:
    """Of (L0, figure)."""
    drawn = [frontier_chart.Point(l0, value, "", "", "", "") for l0, value in points]
    return [(p.l0, p.value) for p in frontier_chart.pareto(drawn, frontier_chart.METRICS[metric])]


def born_and_died(before: Sequence[int], now: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of the firings of each latent at two steps."""
    steps = [{"status": np.minimum(n, 1), "density": n / 100} for n in map(np.array, (before, now))]
    return training._between(steps[0], steps[1])[2:]


def counterparts_of(W_dec: _Rows, among: _Rows, live: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    one, other = (Directions(torch.tensor(rows).float(), torch.float32) for rows in (W_dec, among))
    return compare.counterparts(one, other, np.array(live))


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


def side(
    best: Sequence[int], cos: Sequence[float], fires: Sequence[int] | None = None, both: Sequence[int] | None = None
) -> Side:
    """One SAE, all of whose latents fired."""
    counts = (np.array(n or [0] * len(best), np.uint32) for n in (fires, both))
    live = np.ones(len(best), bool)
    return Side(np.array(best, np.uint32)[:, None], np.array(cos, np.float32)[:, None], live, *counts)


def both_of(a: Side, b: Side) -> Both:
    codes = matching.classify(a, b)
    return Both({}, {"a": a, "b": b}, {"a": codes[0], "b": codes[1]}, "a", 100)


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
