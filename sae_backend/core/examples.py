"""Which contexts a latent's page shows: the strongest, uniform draws from each interval, uniform draws from all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sae_backend.core import kernels
from sae_backend.core.activations import Rows
from sae_backend.core.config import RunConfig
from sae_backend.packing import N_INTERVALS, RANDOM, TOP, Examples

Ints = npt.NDArray[np.int64]


def choose(rows: Rows, lo: int, tokens: npt.NDArray[np.uint32], cfg: RunConfig) -> list[Examples]:
    """Examples of latents lo, lo + 1, … over tokens [n ctx_len], with the latent's activations across each context."""
    n, ctx_len = len(rows.indptr) - 1, tokens.shape[1]
    top = np.empty((n, cfg.top), np.int64)
    kernels.tops(rows.indptr, rows.token, rows.act, tokens.reshape(-1), ctx_len, cfg.duplicate_reach, top)
    drawn = np.empty((n, N_INTERVALS * cfg.per_interval + cfg.random), np.int64)
    kernels.samples(rows.indptr, rows.token, rows.act, lo, cfg.seed, cfg.per_interval, cfg.random, drawn)
    kinds = np.concatenate(
        [
            np.full(cfg.top, TOP),
            np.repeat(np.arange(1, N_INTERVALS + 1), cfg.per_interval),
            np.full(cfg.random, RANDOM),
        ]
    )
    return _cut(rows, np.concatenate([top, drawn], axis=1), kinds.astype(np.uint8), ctx_len)


def _cut(rows: Rows, places: Ints, kinds: npt.NDArray[np.uint8], ctx_len: int) -> list[Examples]:
    """Take each chosen place's context out of its latent's row, strongest first within a kind."""
    latent, column = np.nonzero(places >= 0)
    place, kind = places[latent, column], kinds[column]
    order = np.lexsort((rows.token[place], -rows.act[place], kind, latent))
    latent, place, kind = latent[order], place[order], kind[order]
    first, last = np.empty_like(place), np.empty_like(place)
    kernels.context_bounds(rows.indptr, rows.token, latent, place, ctx_len, first, last)
    ends = np.searchsorted(latent, np.arange(len(places) + 1))
    return [
        _examples(rows, place[a:b], kind[a:b], first[a:b], last[a:b], ctx_len)
        for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    ]


def _examples(
    rows: Rows, place: Ints, kind: npt.NDArray[np.uint8], first: Ints, last: Ints, ctx_len: int
) -> Examples:
    context, peak = np.divmod(rows.token[place], ctx_len)
    offsets = np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64)
    # the ranges first … last of every example, end to end
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first, last - first)
    return Examples(
        interval=kind,
        context=context.astype(np.uint32),
        peak=peak.astype(np.uint16),
        offsets=offsets,
        position=(rows.token[within] % ctx_len).astype(np.uint16),
        act=rows.act[within],
    )


def strongest_tokens(examples: Examples, tokens: npt.NDArray[np.uint32], n: int = 3) -> list[int]:
    """Up to n distinct peak tokens of the top contexts, strongest first."""
    top = examples.interval == TOP
    peaks = tokens[examples.context[top], examples.peak[top]]
    return list(dict.fromkeys(peaks.tolist()))[:n]
