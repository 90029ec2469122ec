"""Loops over cosines of pairs of latents, compiled by Numba: which can be among a latent's nearest or most opposing.

Cosines come in blocks, rounded to bfloat16 (or float32), read as the integers of their bits: of positive floats the
larger has the larger bits, and of negative ones too. What comes within the rounding's bound of the m-th best is kept
as a candidate, and every candidate's cosine is computed again in float64: the result is exact.
"""

from __future__ import annotations

import numba
import numpy as np

from sae_backend.core.selection import lane_maxima

LANE = 16  # columns that share one extreme
_jit = numba.njit(cache=True, nogil=True)


@_jit
def _value(raw, shift, word):
    word[0] = np.int32(raw) << shift
    return word.view(np.float32)[0]


@_jit
def _bits(value, shift, word):
    """Bits of the largest float of the block's dtype that is at most a positive value."""
    word.view(np.float32)[0] = value
    return word[0] >> shift


@_jit
def _insert(value, best):
    """Put a value among the largest so far, ascending, in place of their least."""
    if value > best[0]:
        j = 0
        while j + 1 < best.size and best[j + 1] < value:
            best[j] = best[j + 1]
            j += 1
        best[j] = value


@_jit
def _mth_largest(values, m):
    """By insertion: m is small."""
    best = values[:m].copy()
    best.sort()
    for value in values[m:]:
        _insert(value, best)
    return best[0]


@_jit
def _least(best, slack, eps):
    """What a rounded value must reach to be among the m best, when the m-th best rounded value is `best`."""
    return best - 2 * (slack + eps * abs(best))


@_jit
def _compress(found, values, n, m, slack, eps):
    """Drop what cannot be among the m largest of the first n values; how many stay, and what newcomers must reach."""
    least = _least(_mth_largest(values[:n], m), slack, eps)
    kept = 0
    for c in range(n):
        if values[c] >= least:
            found[kept], values[kept] = found[c], values[c]
            kept += 1
    return kept, least


@_jit
def _beyond(nearest, opposing, sign, shift, word):
    """Bits, signed and unsigned, beyond which a cosine may reach one of two bounds; every one is beyond where a bound
    is not positive, for then it says nothing about bits."""
    if nearest <= 0 or opposing <= 0:
        return -sign - 1, np.int64(-1)
    return np.int64(_bits(nearest, shift, word)) - 1, sign + _bits(opposing, shift, word) - 1


@_jit
def _lanes_beyond(high, low, above, below, lanes):
    """Which lanes hold something beyond either bound; how many. Without a branch, which would be foreseen wrongly."""
    n = 0
    for lane in range(high.size):
        lanes[n] = lane
        n += (high[lane] > above) | (low[lane] > below)
    return n


@_jit
def _raised(least, best, shift, word, slack, eps):
    """What newcomers must reach once m + 1 lanes hold `best` or more: one of them may hold the latent itself."""
    return max(least, _least(_value(best[0], shift, word), slack, eps)) if best[0] > 0 else least


@_jit
def _add(column, value, m, slack, eps, found, values, count, least):
    """Add a candidate; how many there are then (-1 where too many are alike to be kept), and the bound."""
    found[count], values[count] = column, value
    count += 1
    if count == found.size:
        count, least = _compress(found, values, count, m, slack, eps)
        if 2 * count > found.size:
            count = -1
    return count, least


@_jit
def block(signed, unsigned, columns, rows, directed, m, slack, eps, shift, found, values, counts, best, least):
    """Feed a block of rounded cosines [n w] of the latents `rows` with the latents `columns` to the rows' candidates.

    The block comes as the integers of its bits, twice: the largest signed integer is the largest cosine, the largest
    unsigned one the most negative. Side 0 is the nearest, side 1 the most opposing, its values kept negated. found,
    values [2 n cap] are the candidates so far, counts [2 n] their number or -1 where they outgrew cap; best
    [2 n m+1], at first 0, the largest extremes of lanes, as bits without the sign; least [2 n], at first -inf, what a
    newcomer's value must reach. |rounded - exact| ≤ slack[n] + eps·|rounded|.
    """
    n, w = signed.shape
    q = max(1, w // LANE)
    sign = np.int64(1) << (signed.itemsize * 8 - 1)
    word, lanes = np.empty(1, np.int32), np.empty(q + 1, np.int64)
    high, low = np.empty(q, signed.dtype), np.empty(q, unsigned.dtype)
    for r in range(n):
        if not directed[rows[r]]:
            continue
        lane_maxima(signed[r], high)
        lane_maxima(unsigned[r], low)
        above, below = _beyond(least[0, r], least[1, r], sign, shift, word)
        some = lanes[: _lanes_beyond(high, low, above, below, lanes)]
        for lane in some:
            _insert(np.int64(high[lane]), best[0, r])
            _insert(np.int64(low[lane]) - sign, best[1, r])
        for side in range(2):
            least[side, r] = _raised(least[side, r], best[side, r], shift, word, slack[r], eps)
        above, below = _beyond(least[0, r], least[1, r], sign, shift, word)
        for lane in some:
            if high[lane] <= above and low[lane] <= below:
                continue
            for j in range(lane, w, q):
                column = columns[j]
                if signed[r, j] <= above and unsigned[r, j] <= below or column == rows[r] or not directed[column]:
                    continue
                value = _value(signed[r, j], shift, word)
                for side in range(2):
                    mine = value if side == 0 else -value
                    if counts[side, r] >= 0 and mine >= least[side, r]:
                        counts[side, r], least[side, r] = _add(
                            column, mine, m, slack[r], eps, found[side, r], values[side, r], counts[side, r],
                            least[side, r],
                        )  # fmt: skip


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(a, b):
    total = 0.0
    for j in range(a.size):
        total += np.float64(a[j]) * np.float64(b[j])
    return total


@_jit
def _place(cosine, column, side, ids, cosines):
    """Put a column where it belongs among the m best so far; of equal cosines the lower column goes first."""
    j = ids.size
    while j > 0 and (
        cosines[j - 1] == np.inf
        or (cosine > cosines[j - 1] if side == 0 else cosine < cosines[j - 1])
        or (cosine == cosines[j - 1] and column < ids[j - 1])
    ):
        j -= 1
    if j < ids.size:
        for q in range(ids.size - 1, j, -1):
            ids[q], cosines[q] = ids[q - 1], cosines[q - 1]
        ids[j], cosines[j] = column, cosine


@_jit
def exact(unit, rows, others, directed, slack, eps, found, values, counts, ids, cosines):
    """The m best of each row's candidates, or of all `others` where those outgrew their room, by exact cosine.

    ids, cosines [2 n m], infinite where there are fewer.
    """
    cosines[:] = np.inf
    ids[:] = 0
    for r in range(ids.shape[1]):
        if not directed[rows[r]]:
            continue
        for side in range(2):
            n, m, everything = counts[side, r], ids.shape[2], counts[side, r] < 0
            if n > m:
                n, _ = _compress(found[side, r], values[side, r], n, m, slack[r], eps)
            for c in range(others.size if everything else n):
                column = others[c] if everything else found[side, r, c]
                if column != rows[r] and directed[column]:
                    cosine = np.float32(_dot(unit[rows[r]], unit[column]))
                    _place(cosine, np.uint32(column), side, ids[side, r], cosines[side, r])
