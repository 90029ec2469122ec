"""The loops behind latents' pages, compiled by Numba and cached on disk: all exact, each on one core."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Scalar = Any  # a number of a type that Numba tells apart

_jit = numba.njit(cache=True, nogil=True)
_sums = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})  # in float64; their order is free
_CHUNK = 64  # values looked at with a few vector instructions


# ---- rows of bytes -----------------------------------------------------------------------------


@_jit
def lay(data: Array, starts: Array, at: Array, out: Array) -> None:
    """Copy each row of bytes, data[starts[i] : starts[i + 1]], to out[at[i] …], and move at[i] behind it."""
    for i in range(at.size):
        part = data[starts[i] : starts[i + 1]]
        to = out[at[i] : at[i] + part.size]  # a slice starts at 0: no check for negative indices, so it vectorises
        for j in range(part.size):
            to[j] = part[j]
        at[i] += part.size


# ---- examples ------------------------------------------------------------------------------------


@_jit
def sort_kinds(places: Array, ends: Array, act: Array) -> None:
    """Sort each latent's places within each kind by activation, strongest first, the earlier of equals first.

    A kind's columns end before ends[kind]; -1 fills their rear.
    """
    for i in range(places.shape[0]):
        first = 0
        for end in ends:
            for column in range(first + 1, end):
                place = places[i, column]
                if place < 0:
                    break
                k = column
                while k > first and _stronger(act, place, places[i, k - 1]):
                    places[i, k] = places[i, k - 1]
                    k -= 1
                places[i, k] = place
            first = end


@_jit
def _stronger(act: Array, place: int, other: int) -> bool:
    return act[place] > act[other] or (act[place] == act[other] and place < other)


@_jit
def windows(
    indptr: Array, token: Array, starts: Array, place: Array, ctx_len: int,
    context: Array, peak: Array, first: Array, last: Array,
) -> None:  # fmt: skip
    """Context and position of each chosen firing, and where its latent's firings in that context begin and end.

    Latent i chose place[starts[i] : starts[i + 1]].
    """
    for i in range(starts.size - 1):
        for e in range(starts[i], starts[i + 1]):
            q = place[e]
            context[e] = token[q] // ctx_len
            begin = np.int64(context[e]) * ctx_len
            peak[e] = token[q] - begin
            a, b = q, q + 1
            while a > indptr[i] and token[a - 1] >= begin:
                a -= 1
            while b < indptr[i + 1] and token[b] < begin + ctx_len:
                b += 1
            first[e], last[e] = a, b


@_jit
def cut(
    token: Array, act: Array, context: Array, first: Array, offsets: Array, ctx_len: int, position: Array, out: Array
) -> None:
    """Positions and activations of each example's firings, from first[e] on, to offsets[e] … offsets[e + 1]."""
    for e in range(context.size):
        begin, n = np.int64(context[e]) * ctx_len, offsets[e + 1] - offsets[e]
        from_token, from_act = token[first[e] : first[e] + n], act[first[e] : first[e] + n]
        to_position, to_act = position[offsets[e] : offsets[e] + n], out[offsets[e] : offsets[e] + n]
        for j in range(n):
            to_position[j] = from_token[j] - begin
            to_act[j] = from_act[j]


@_jit
def distinct_peaks(starts: Array, chosen: Array, context: Array, peak: Array, tokens: Array, out: Array) -> None:
    """The first distinct peak tokens of each latent's chosen examples [n wanted]; what is not filled is left."""
    for i in range(out.shape[0]):
        n = 0
        for e in range(starts[i], starts[i + 1]):
            if n == out.shape[1]:
                break
            if not chosen[e]:
                continue
            token = tokens[context[e], peak[e]]
            fresh = True
            for k in range(n):
                fresh &= out[i, k] != token
            if fresh:
                out[i, n] = token
                n += 1


# ---- effects on the logits -----------------------------------------------------------------------


@_sums
def _mean(row: Array) -> float:
    total = 0.0
    for j in range(row.size):
        total += row[j]
    return total / row.size


@_jit
def _centre(row: Array, mean: Scalar, out: Array) -> tuple[float, float]:
    """row - mean; its smallest and largest."""
    low, high = np.full(_CHUNK, row[0] - mean), np.full(_CHUNK, row[0] - mean)
    whole = row.size // _CHUNK * _CHUNK
    for a in range(0, whole, _CHUNK):
        part, to = row[a : a + _CHUNK], out[a : a + _CHUNK]
        for j in range(_CHUNK):
            x = part[j] - mean
            to[j] = x
            low[j] = x if x < low[j] else low[j]
            high[j] = x if x > high[j] else high[j]
    for j in range(whole, row.size):
        out[j] = row[j] - mean
        low[0], high[0] = min(low[0], out[j]), max(high[0], out[j])
    return low.min(), high.max()


@_sums
def _powers(row: Array) -> tuple[float, float, float]:
    """Means of the second, third and fourth powers."""
    m2 = m3 = m4 = 0.0
    for j in range(row.size):
        x = np.float64(row[j])
        square = x * x
        m2 += square
        m3 += square * x
        m4 += square * square
    return m2 / row.size, m3 / row.size, m4 / row.size


@_jit
def _count(row: Array, low: Scalar, per_unit: Scalar, bins: Array, counts: Array) -> None:
    """Each value's bin, and how many values each bin has; float32 like the values."""
    last = np.int32(counts.size - 1)
    for j in range(row.size):
        bins[j] = min(max(np.int32((row[j] - low) * per_unit), np.int32(0)), last)
    counts[:] = 0
    for j in range(row.size):
        counts[bins[j]] += 1


@_jit
def _tails(counts: Array, m: int) -> tuple[int, int]:
    """The last of the first bins and the first of the last that hold m values."""
    low, below = 0, counts[0]
    while below < m and low < counts.size - 1:
        low += 1
        below += counts[low]
    high, above = counts.size - 1, counts[counts.size - 1]
    while above < m and high > 0:
        high -= 1
        above += counts[high]
    return low, high


@_jit
def _insert(x: Scalar, j: int, n: int, ids: Array, values: Array) -> int:
    """Put x among the n largest so far, behind its equals; how many there are then."""
    k = min(n, ids.size - 1)
    if n == ids.size and not x > values[k]:
        return n
    while k > 0 and x > values[k - 1]:
        values[k], ids[k] = values[k - 1], ids[k - 1]
        k -= 1
    values[k], ids[k] = x, j
    return min(n + 1, ids.size)


@_jit
def _extremes(
    row: Array, bins: Array, low: Scalar, high: Scalar, top: Array, top_value: Array, least: Array, least_value: Array
) -> None:
    """The largest values, and the smallest with their signs turned: only bins up to low and from high on have them."""
    n_top = n_least = 0
    for a in range(0, row.size, _CHUNK):
        part = bins[a : a + _CHUNK]
        some = False
        for j in range(part.size):
            some |= (part[j] <= low) | (part[j] >= high)
        if not some:
            continue
        for j in range(part.size):
            if part[j] >= high:
                n_top = _insert(row[a + j], a + j, n_top, top, top_value)
            if part[j] <= low:
                n_least = _insert(-row[a + j], a + j, n_least, least, least_value)


@_jit
def effects(
    effect: Array, place: Array, up: Array, up_effect: Array, down: Array, down_effect: Array, low: Array, high: Array,
    counts: Array, powers: Array,
) -> None:  # fmt: skip
    """Of each row of effect [n d_vocab], once centred: its largest and smallest, range, histogram, m2, m3, m4.

    Those of row i go to place[i] of up, down and their effects [n m] (ties to the lower token both ways), low, high,
    counts [n bins] and powers [n 3].
    """
    m, bins = up.shape[1], counts.shape[1]
    row, binned = np.empty(effect.shape[1], np.float32), np.empty(effect.shape[1], np.uint8)
    for i in range(effect.shape[0]):
        p = place[i]
        low[p], high[p] = _centre(effect[i], np.float32(_mean(effect[i])), row)
        powers[p, 0], powers[p, 1], powers[p, 2] = _powers(row)
        _count(row, low[p], np.float32(bins) / max(high[p] - low[p], np.float32(1e-30)), binned, counts[p])
        first, last = _tails(counts[p], m)
        _extremes(row, binned, np.uint8(first), np.uint8(last), up[p], up_effect[p], down[p], down_effect[p])
        for k in range(m):
            down_effect[p, k] = -down_effect[p, k]
