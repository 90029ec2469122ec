"""Which contexts a latent's page shows: the strongest, uniform draws from each interval, uniform draws from all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sae_backend.core import kernels, page_kernels
from sae_backend.core.activations import Rows
from sae_backend.core.config import RunConfig
from sae_backend.core.ragged import ends
from sae_backend.core.results import ExamplesByLatent, TokensByLatent
from sae_backend.packing import N_INTERVALS, RANDOM, TOP

Ints = npt.NDArray[np.int64]


def choose(rows: Rows, lo: int, tokens: npt.NDArray[np.uint32], cfg: RunConfig) -> ExamplesByLatent:
    """Examples of latents lo, lo + 1, … over tokens [n ctx_len], with the latent's activations across each context."""
    n, ctx_len = len(rows.indptr) - 1, tokens.shape[1]
    top = np.empty((n, cfg.top), np.int64)
    bits = rows.act.view(np.int32)
    kernels.tops(rows.indptr, rows.token, bits, tokens.reshape(-1), ctx_len, cfg.duplicate_reach, top)
    drawn = np.empty((n, N_INTERVALS * cfg.per_interval + cfg.random), np.int64)
    kernels.samples(rows.indptr, rows.token, rows.act, lo, cfg.seed, cfg.per_interval, cfg.random, drawn)
    places = np.concatenate([top, drawn], axis=1)
    columns = np.array([cfg.top, *[cfg.per_interval] * N_INTERVALS, cfg.random])  # of TOP, 1 … N_INTERVALS, RANDOM
    page_kernels.sort_kinds(places, np.cumsum(columns), rows.act)
    kinds = np.repeat(np.arange(TOP, RANDOM + 1, dtype=np.uint8), columns)
    return _cut(rows, places, kinds, ctx_len)


def _cut(rows: Rows, places: Ints, kinds: npt.NDArray[np.uint8], ctx_len: int) -> ExamplesByLatent:
    """Take each chosen place's context out of its latent's row."""
    some = places >= 0
    starts, place = ends(some.sum(1)), places[some]
    context, peak = np.empty(len(place), np.uint32), np.empty(len(place), np.uint16)
    first, last = np.empty_like(place), np.empty_like(place)
    page_kernels.windows(rows.indptr, rows.token, starts, place, ctx_len, context, peak, first, last)
    offsets = ends(last - first)
    position, act = np.empty(int(offsets[-1]), np.uint16), np.empty(int(offsets[-1]), np.float32)
    page_kernels.cut(rows.token, rows.act, context, first, offsets, ctx_len, position, act)
    kind = np.broadcast_to(kinds, places.shape)[some]
    return ExamplesByLatent(starts, kind, context, peak, offsets, position, act)


def strongest_tokens(examples: ExamplesByLatent, tokens: npt.NDArray[np.uint32], n: int = 3) -> TokensByLatent:
    """Up to n distinct peak tokens of each latent's top contexts, strongest first."""
    ids = np.full((len(examples), n), -1)
    page_kernels.distinct_peaks(examples.starts, examples.interval == TOP, examples.context, examples.peak, tokens, ids)
    return TokensByLatent(ids)
