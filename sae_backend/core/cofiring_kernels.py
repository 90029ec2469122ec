"""Loops over pairs of latents that fire on one token, compiled by Numba; exact, on one core."""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)


@_jit
def by_latent(starts, latent, at, token):
    """The tokens of each latent, ascending, from at[latent] on, which moves."""
    for t in range(starts.size - 1):
        for q in range(starts[t], starts[t + 1]):
            i = latent[q]
            token[at[i]] = t
            at[i] += 1


@_jit
def _place(found, n, j, both, jaccard, values):
    """Insert a latent into a list of n, largest Jaccard first and of equal ones the lower latent; its new length."""
    room = values.size
    if n == room:
        worst, last = values[n - 1], found[n - 1, 0]
        if jaccard < worst or (jaccard == worst and j > last):
            return n
        n -= 1
    at = n
    while at > 0 and (values[at - 1] < jaccard or (values[at - 1] == jaccard and found[at - 1, 0] > j)):
        values[at], found[at, 0], found[at, 1] = values[at - 1], found[at - 1, 0], found[at - 1, 1]
        at -= 1
    values[at], found[at, 0], found[at, 1] = jaccard, j, both
    return n + 1


@_jit
def together(starts, latent, begins, token, counts, lo, asked, both, found):
    """How often latents lo, lo + 1, … fire with those asked for [n m], into both [n m], and their m' best.

    starts, latent: firings by token; begins, token: the same by latent; counts [d_sae] of each latent. found [n m' 2]
    gets latents (-1 where fewer) and on how many tokens both fire.
    """
    common = np.zeros(counts.size, np.int32)
    seen = np.empty(counts.size + 1, np.int32)  # one is written before it is known to be new
    values = np.empty(found.shape[1], np.float64)
    for r in range(found.shape[0]):
        i, n_seen = lo + r, 0
        for q in range(begins[i], begins[i + 1]):
            t = token[q]
            for p in range(starts[t], starts[t + 1]):
                j = latent[p]
                seen[n_seen] = j
                n_seen += common[j] == 0
                common[j] += 1
        for m in range(asked.shape[1]):
            both[r, m] = common[asked[r, m]]
        n = 0
        for s in range(n_seen):
            j = np.int64(seen[s])
            if j != i:
                c = np.int64(common[j])
                n = _place(found[r], n, j, c, c / (counts[i] + counts[j] - c), values)
        found[r, n:, 0], found[r, n:, 1] = -1, 0
        for s in range(n_seen):
            common[seen[s]] = 0
