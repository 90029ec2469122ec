"""Loops that neither NumPy nor torch has, compiled by Numba and cached on disk. All are exact and order-free."""

from __future__ import annotations

import numba
import numpy as np

LANE = 16  # columns that share one maximum
_jit = numba.njit(cache=True, nogil=True, parallel=True)
_jit1 = numba.njit(cache=True, nogil=True)


@_jit1
def _better(v, i, w, j):
    """The selection order: larger value first, then the lower index."""
    return v > w or (v == w and i < j)


@_jit1
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


@_jit1
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


@_jit1
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

    `pre` holds the floats' bits as integers: positive floats compare like their bits, and only positive ones are
    kept. values, indices [n cap] (cap ≥ 2k + 1) are the candidates so far, counts [n] their number, bounds [n]
    what a newcomer must exceed, at first 0. Columns come in ascending order; topk_finish ends it.
    """
    n, w = pre.shape
    lanes = max(1, w // LANE)
    for r in numba.prange(n):
        maxima = np.empty(lanes, pre.dtype)
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
def topk_finish(values, indices, counts, k, out):
    """Latents of each row's k best candidates, ascending, -1 where there are fewer; their order in `values` is left."""
    for r in numba.prange(out.shape[0]):
        n = counts[r]
        if n > k:
            _keep_best(values[r], indices[r], n, k)
            n = k
        order = np.argsort(indices[r, :n])
        vals = values[r, :n][order]
        idxs = indices[r, :n][order]
        values[r, :n] = vals
        indices[r, :n] = idxs
        for j in range(k):
            out[r, j] = idxs[j] if j < n else -1


@_jit1
def transpose(row_of, latent, value, indptr, token, act):
    """Sort triples by latent, keeping the order of rows: one counting sort. indptr [d_sae + 1] is filled."""
    for i in range(latent.size):
        indptr[latent[i] + 1] += 1
    for i in range(1, indptr.size):
        indptr[i] += indptr[i - 1]
    at = indptr[:-1].copy()
    for i in range(latent.size):
        p = at[latent[i]]
        token[p] = row_of[i]
        act[p] = value[i]
        at[latent[i]] = p + 1


@_jit1
def splitmix(token, latent, seed):
    """A 64-bit hash of (token, latent, seed): Steele, Lea, Flood, "Fast splittable pseudorandom number generators"."""
    x = np.uint64(token) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(latent) * np.uint64(0xC2B2AE3D27D4EB4F)
    x += np.uint64(seed) * np.uint64(0x165667B19E3779F9)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_jit1
def lay(part_token, part_act, count, start, offset, token, act):
    """Copy each row's count[i] entries to start[i], tokens shifted by offset."""
    p = 0
    for i in range(count.size):
        for q in range(start[i], start[i] + count[i]):
            token[q] = np.int64(part_token[p]) + offset
            act[q] = part_act[p]
            p += 1


@_jit
def moments(indptr, act, n_tokens, out):
    """Per latent [n 9]: max, mean, m2, m3, m4 over its firings; mean, m2, m4 over all tokens; Σa⁴·N/(Σa²)²."""
    for i in numba.prange(indptr.size - 1):
        a = act[indptr[i] : indptr[i + 1]]
        n = a.size
        if n == 0:
            continue
        top, total = a[0], 0.0
        for x in a:
            top = max(top, x)
            total += x
        mean, mean_all = total / n, total / n_tokens
        m2 = m3 = m4 = q2 = q4 = r2 = r4 = 0.0
        for x in a:
            d, e, z = x - mean, x - mean_all, np.float64(x) * x
            m2 += d * d
            m3 += d * d * d
            m4 += d * d * d * d
            q2 += e * e
            q4 += e * e * e * e
            r2 += z
            r4 += z * z
        silent = n_tokens - n
        q2 += silent * mean_all**2
        q4 += silent * mean_all**4
        out[i, 0], out[i, 1] = top, mean
        out[i, 2], out[i, 3], out[i, 4] = m2 / n, m3 / n, m4 / n
        out[i, 5], out[i, 6], out[i, 7] = mean_all, q2 / n_tokens, q4 / n_tokens
        out[i, 8] = r4 * n_tokens / (r2 * r2)


@_jit1
def interval_of(act, top, n_intervals):
    """1 … n_intervals: which of the equal-width bands of (0, top] holds act, upper edges included."""
    return min(n_intervals, max(1, int(np.ceil(np.float64(act) * n_intervals / np.float64(top)))))


@_jit
def histograms(indptr, act, bits, first, bins, intervals):
    """Counts in logarithmic bins [n n_bins] (bits >> 20 is 8 a octave) and in bands of (0, max] [n n_intervals]."""
    for i in numba.prange(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        if a == b:
            continue
        top = act[a:b].max()
        for q in range(a, b):
            bins[i, min(bins.shape[1] - 1, max(0, (bits[q] >> 20) - first))] += 1
            intervals[i, interval_of(act[q], top, intervals.shape[1]) - 1] += 1


@_jit
def bands(indptr, act, out):
    """Counts in equal-width bands of (0, max] [n n_bands]."""
    for i in numba.prange(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        if a < b:
            top = act[a:b].max()
            for q in range(a, b):
                out[i, interval_of(act[q], top, out.shape[1]) - 1] += 1


@_jit1
def _insert(hashes, places, n, h, q):
    """Keep the smallest hashes, ascending, in a short sorted list of n so far; returns its new length."""
    if n == hashes.size:
        if n == 0 or h >= hashes[n - 1]:
            return n
        n -= 1
    j = n
    while j > 0 and hashes[j - 1] > h:
        hashes[j], places[j] = hashes[j - 1], places[j - 1]
        j -= 1
    hashes[j], places[j] = h, q
    return n + 1


@_jit
def samples(indptr, token, act, lo, seed, per_interval, per_random, out):
    """Uniform draws without replacement by smallest hash: places in `act` [n n_intervals·per_interval + per_random].

    A token's hash depends on (token, latent, seed) alone, so the draw does not depend on how the work was cut.
    -1 where a band holds fewer.
    """
    n_intervals = (out.shape[1] - per_random) // per_interval
    for i in numba.prange(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        out[i, :] = -1
        if a == b:
            continue
        top = act[a:b].max()
        filled = np.zeros(n_intervals + 1, np.int64)
        hashes = np.empty((n_intervals + 1, max(per_interval, per_random)), np.uint64)
        for q in range(a, b):
            band = interval_of(act[q], top, n_intervals) - 1
            s = band * per_interval
            h = splitmix(token[q], lo + i, 2 * seed)
            filled[band] = _insert(hashes[band, :per_interval], out[i, s : s + per_interval], filled[band], h, q)
            h = splitmix(token[q], lo + i, 2 * seed + 1)
            s = n_intervals * per_interval
            filled[n_intervals] = _insert(
                hashes[n_intervals, :per_random], out[i, s : s + per_random], filled[n_intervals], h, q
            )


@_jit1
def _same_window(tokens, a, b, reach, ctx_len):
    """Whether the tokens within `reach` of places a and b, clipped to their contexts, are the same."""
    pa, pb = a % ctx_len, b % ctx_len
    before = min(reach, pa)
    after = min(reach, ctx_len - 1 - pa)
    if before != min(reach, pb) or after != min(reach, ctx_len - 1 - pb):
        return False
    for d in range(-before, after + 1):  # noqa: SIM110  # numba compiles no all() over a generator
        if tokens[a + d] != tokens[b + d]:
            return False
    return True


@_jit1
def _context_peaks(token, act, ctx_len, places):
    """Place of the strongest firing in each context (the first of equals); how many contexts there are."""
    n, context = 0, -1
    for q in range(token.size):
        c = token[q] // ctx_len
        if c != context:
            context = c
            places[n] = q
            n += 1
        elif act[q] > act[places[n - 1]]:
            places[n - 1] = q
    return n


@_jit
def tops(indptr, token, act, tokens, ctx_len, reach, out):
    """Places of the K strongest firings [n K], one a context, near-duplicate windows once, -1 where fewer.

    Ties go to the earlier (context, position). Two windows are near duplicates when the tokens within `reach` of
    their peaks are equal; the stronger is kept.
    """
    for i in numba.prange(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        out[i, :] = -1
        if a == b:
            continue
        tok, val = token[a:b], act[a:b]
        places = np.empty(tok.size, np.int64)
        n = _context_peaks(tok, val, ctx_len, places)
        order = np.argsort(-val[places[:n]], kind="mergesort")
        kept = 0
        for o in order:
            q = places[o]
            fresh = True
            for j in range(kept):
                if _same_window(tokens, tok[q], tok[out[i, j] - a], reach, ctx_len):
                    fresh = False
                    break
            if fresh:
                out[i, kept] = a + q
                kept += 1
                if kept == out.shape[1]:
                    break


@_jit1
def context_bounds(indptr, token, latent, place, ctx_len, first, last):
    """For each chosen firing, where its latent's firings in the same context begin and end in `token`."""
    for e in range(place.size):
        a, b = indptr[latent[e]], indptr[latent[e] + 1]
        start = token[place[e]] // ctx_len * ctx_len
        first[e] = a + np.searchsorted(token[a:b], start)
        last[e] = a + np.searchsorted(token[a:b], start + ctx_len)
