"""Loops that choose which pre-activations fire, while a block of them is in cache. Compiled by Numba, exact.

They read floats as the integers of the same bits: positive floats compare like their bits, and only positive
pre-activations fire. Each runs on one core and releases the interpreter: lanes run several.
"""

from __future__ import annotations

import numba
import numpy as np

LANE = 16  # columns that share one maximum
CHUNK = 64  # columns of which a threshold pass asks at once whether any fires
_jit = numba.njit(cache=True, nogil=True)


@_jit
def _better(v, i, w, j):
    """The selection order: larger value first, then the lower index."""
    return v > w or (v == w and i < j)


@_jit
def _keep_best(values, indices, n, k):
    """Move the k best of the first n candidates to the front (Hoare's quickselect)."""
    lo, hi = 0, n - 1
    while lo < hi:
        pv, pi = values[(lo + hi) >> 1], indices[(lo + hi) >> 1]
        a, b = lo, hi
        while a <= b:
            while _better(values[a], indices[a], pv, pi):
                a += 1
            while _better(pv, pi, values[b], indices[b]):
                b -= 1
            if a <= b:
                values[a], values[b] = values[b], values[a]
                indices[a], indices[b] = indices[b], indices[a]
                a += 1
                b -= 1
        if k - 1 <= b:
            hi = b
        elif k - 1 >= a:
            lo = a
        else:
            break


@_jit
def _lane_maxima(row, maxima):
    """Largest of each lane: columns j, j + q, j + 2q … of a row of q lanes, so that the loop is one vector maximum."""
    q = maxima.size
    maxima[:] = row[:q]
    for s in range(1, row.size // q):
        part = row[s * q : (s + 1) * q]  # a slice starts at 0: no check for negative indices, so it vectorises
        for j in range(q):
            maxima[j] = part[j] if part[j] > maxima[j] else maxima[j]
    rest = row[row.size // q * q :]
    for j in range(rest.size):
        maxima[j] = max(maxima[j], rest[j])


@_jit
def _gather(row, col0, maxima, k, bound, m, values, indices):
    """Append what exceeds the bound; when full, keep the k best and raise the bound to just below their worst."""
    q = maxima.size
    full = values.size - 1
    for lane in range(q):
        if maxima[lane] <= bound:
            continue
        for j in range(lane, row.size, q):
            if row[j] > bound:
                values[m] = row[j]
                indices[m] = col0 + j
                m += 1
                if m == full:
                    _keep_best(values, indices, m, k)
                    m = k
                    bound = max(bound, values[:k].min() - 1)  # equal values may still win by a lower index
    return bound, m


@_jit
def topk_block(pre, col0, k, values, indices, counts, bounds):
    """Feed one block of columns of pre-activations [n w] to every row's running top k.

    values, indices [n cap] (cap ≥ 2k + 1) are the candidates so far, counts [n] their number, bounds [n] what a
    newcomer must exceed, at first 0. Columns come in ascending order; topk_finish ends it.
    """
    n, w = pre.shape
    lanes = max(1, w // LANE)
    maxima = np.empty(lanes, pre.dtype)
    for r in range(n):
        _lane_maxima(pre[r], maxima)
        bound = bounds[r]
        if counts[r] == 0 and lanes >= k:  # the k-th of the lanes' maxima bounds the k-th largest of the row
            bound = max(bound, np.partition(maxima, lanes - k)[lanes - k] - 1)
        bound, m = _gather(pre[r], col0, maxima, k, bound, counts[r], values[r], indices[r])
        if m >= 2 * k:
            _keep_best(values[r], indices[r], m, k)
            m = k
            bound = max(bound, values[r, :k].min())  # later columns lose ties, so they must be strictly greater
        bounds[r], counts[r] = bound, m


@_jit
def topk_finish(values, indices, counts, k, indptr, latent, bits):
    """Each row's k best candidates, ascending by latent, end to end; indptr [n + 1] says where each row begins."""
    at = 0
    for r in range(counts.size):
        n = counts[r]
        if n > k:
            _keep_best(values[r], indices[r], n, k)
            n = k
        for j in np.argsort(indices[r, :n]):
            latent[at] = indices[r, j]
            bits[at] = values[r, j]
            at += 1
        indptr[r + 1] = at


@_jit
def _any_above(row, threshold):
    hit = False
    for j in range(row.size):
        hit |= row[j] > threshold[j]
    return hit


@_jit
def above(pre, threshold, col0, latent, bits, ends):
    """Columns of each row of pre [n w] above their threshold [w], end to end from 0; ends [n] where each row stops.

    Returns how many there are; beyond the room in `latent` they are counted only: call again with more room.
    """
    n, w = pre.shape
    m = 0
    for r in range(n):
        for c in range(0, w, CHUNK):
            row, least = pre[r, c : c + CHUNK], threshold[c : c + CHUNK]
            if _any_above(row, least):
                for j in range(row.size):
                    if row[j] > least[j]:
                        if m < latent.size:
                            latent[m] = col0 + c + j
                            bits[m] = row[j]
                        m += 1
        ends[r] = m
    return m


@_jit
def weave(ends, latent, bits, at, out_latent, out_bits):
    """Append each row's piece of one block of columns at at[row], which moves on."""
    start = 0
    for r in range(ends.size):
        for q in range(start, ends[r]):
            out_latent[at[r]] = latent[q]
            out_bits[at[r]] = bits[q]
            at[r] += 1
        start = ends[r]
