"""Loops that choose which pre-activations fire, while a block of them is in cache. Compiled by Numba, exact.

They read floats as the integers of the same bits: positive floats compare like their bits, and only positive
pre-activations fire. Each runs on one core and releases the interpreter: lanes run several.
"""

from __future__ import annotations

import numba
import numpy as np

LANE = 16  # columns that share one maximum
_LAST = np.int64(2**31 - 1)  # of columns
_ONE = np.int64(2**32)  # of a key's value, which stands above its column
CHUNK = 64  # columns of which a threshold pass asks at once whether any fires
_jit = numba.njit(cache=True, nogil=True)


@_jit
def keep_best(keys, n, k):
    """Move the k largest of the first n keys to the front (Hoare's quickselect)."""
    lo, hi = 0, n - 1
    while lo < hi:
        pivot = keys[(lo + hi) >> 1]
        a, b = lo, hi
        while a <= b:
            while keys[a] > pivot:
                a += 1
            while pivot > keys[b]:
                b -= 1
            if a <= b:
                keys[a], keys[b] = keys[b], keys[a]
                a += 1
                b -= 1
        if k - 1 <= b:
            hi = b
        elif k - 1 >= a:
            lo = a
        else:
            break


@_jit
def _kth_value(values, k, low, unit):
    """The k-th largest of values // unit, all of them above `low`, by bisection: counting is one vector loop, and no
    branch depends on the data as in a sort."""
    high = np.int64(values.max()) // unit
    while low < high:  # at least k reach low, or low is as it came; fewer than k reach high + 1
        middle = (low + high + 1) >> 1
        least = middle * unit
        n = 0
        for j in range(values.size):
            n += values[j] >= least
        if n >= k:
            low = middle
        else:
            high = middle - 1
    return low


@_jit
def reduce(keys, n, k, low):
    """Drop keys whose value is below the k-th best; that value, and how many stay: more than k where some are equal."""
    value = _kth_value(keys[:n], k, low, _ONE)
    m = 0
    for j in range(n):
        key = keys[j]
        keys[m] = key
        m += key >= value * _ONE
    if m > 2 * k:
        keep_best(keys, m, k)
        m = k
    return value, m


@_jit
def lane_maxima(row, maxima):
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
def _lanes_above(maxima, bound, lanes):
    """Which lanes hold something above the bound; how many. Without a branch, which would often be foreseen wrongly."""
    n = 0
    for lane in range(maxima.size):
        lanes[n] = lane
        n += maxima[lane] > bound
    return n


@_jit
def _gather(row, col0, n_lanes, lanes, k, bound, m, keys):
    """Append the keys of what exceeds the bound in these lanes (n_lanes in all); when full, keep the best.

    Returns the bound, raised to just below the worst that was kept, and the number of keys.
    """
    room, last = keys.size - -(-row.size // n_lanes), _LAST - col0
    step, end = np.uint64(n_lanes), np.uint64(row.size)  # unsigned: no check for negative indices
    for lane in lanes:
        if m > room:
            value, m = reduce(keys, m, k, bound)
            bound = max(bound, value - 1)  # equal values may still win by a lower column
        j, to = np.uint64(lane), np.uint64(m)
        while j < end:
            value = np.int64(row[j])
            keys[to] = (value << 32) | (last - np.int64(j))
            to += np.uint64(value > bound)
            j += step
        m = np.int64(to)
    return bound, m


@_jit
def topk_block(pre, col0, k, keys, counts, bounds):
    """Feed one block of columns of pre-activations [n w] to every row's running top k.

    keys [n cap] (cap ≥ 2k + 2·LANE) are the candidates so far: a value above its column counted from the rear, so that
    of equal values the lower column is the larger key. counts [n] is their number, bounds [n] what a newcomer must
    exceed, at first 0. Columns come in ascending order; topk_finish ends it.
    """
    n, w = pre.shape
    n_lanes = max(1, w // LANE)
    maxima, lanes = np.empty(n_lanes, pre.dtype), np.empty(n_lanes + 1, np.int64)
    for r in range(n):
        lane_maxima(pre[r], maxima)
        bound = np.int64(bounds[r])
        if counts[r] == 0 and n_lanes >= k:  # the k-th of the lanes' maxima bounds the k-th largest of the row
            bound = max(bound, _kth_value(maxima, k, bound, np.int64(1)) - 1)
        some = lanes[: _lanes_above(maxima, bound, lanes)]
        bound, m = _gather(pre[r], col0, n_lanes, some, k, bound, counts[r], keys[r])
        if m >= 2 * k:
            bound, m = reduce(keys[r], m, k, bound)  # later columns lose ties: they must be strictly greater
        bounds[r], counts[r] = bound, m


@_jit
def topk_finish(keys, counts, k, indptr, latent, bits):
    """Each row's k best candidates, ascending by latent, end to end; indptr [n + 1] says where each row begins."""
    at = 0
    for r in range(counts.size):
        n = counts[r]
        if n > k:
            _, n = reduce(keys[r], n, k, 0)
        if n > k:
            keep_best(keys[r], n, k)
            n = k
        for key in keys[r, :n]:
            column, j = _LAST - (key & _LAST), at
            while j > indptr[r] and latent[j - 1] > column:
                latent[j], bits[j] = latent[j - 1], bits[j - 1]
                j -= 1
            latent[j], bits[j] = column, key >> 32
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
