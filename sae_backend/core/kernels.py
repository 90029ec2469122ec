"""Loops that neither NumPy nor torch has, compiled by Numba and cached on disk. All are exact and order-free.

Each runs on one core and releases the interpreter: lanes run several.
"""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)


@_jit
def canonical(indptr, latent, act, norm, scale, place, token, counts):
    """Put firings on the canonical scale, in place: act · norm[latent] · scale[row] (scale may be empty: 1).

    What becomes 0 is dropped: `latent` and `act` are packed to the front. token [nnz] gets place[row], counts [d_sae]
    each latent's firings; returns how many are left, and of each row in indptr [n + 1].
    """
    m, start = 0, 0
    for r in range(indptr.size - 1):
        stop = indptr[r + 1]
        for q in range(start, stop):
            a = act[q] * norm[latent[q]]
            if scale.size:
                a *= scale[r]
            if a > 0:
                token[m], latent[m], act[m] = place[r], latent[q], a
                counts[latent[q]] += 1
                m += 1
        start = stop
        indptr[r + 1] = m
    return m


@_jit
def scatter(token, latent, act, at, out_token, out_act):
    """Write firings in token order to at[latent], which moves on: with others' parts, a counting sort by latent."""
    for i in range(latent.size):
        p = at[latent[i]]
        out_token[p] = token[i]
        out_act[p] = act[i]
        at[latent[i]] = p + 1


@_jit
def splitmix(token, latent, seed):
    """A 64-bit hash of (token, latent, seed): Steele, Lea, Flood, "Fast splittable pseudorandom number generators"."""
    x = np.uint64(token) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(latent) * np.uint64(0xC2B2AE3D27D4EB4F)
    x += np.uint64(seed) * np.uint64(0x165667B19E3779F9)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@_jit
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
    for i in range(indptr.size - 1):
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


@_jit
def interval_of(act, top, n_intervals):
    """1 … n_intervals: which of the equal-width bands of (0, top] holds act, upper edges included."""
    return min(n_intervals, max(1, int(np.ceil(np.float64(act) * n_intervals / np.float64(top)))))


@_jit
def histograms(indptr, act, bits, first, bins, intervals):
    """Counts in logarithmic bins [n n_bins] (bits >> 20 is 8 a octave) and in bands of (0, max] [n n_intervals]."""
    for i in range(indptr.size - 1):
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
    for i in range(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        if a < b:
            top = act[a:b].max()
            for q in range(a, b):
                out[i, interval_of(act[q], top, out.shape[1]) - 1] += 1


@_jit
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
    for i in range(indptr.size - 1):
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


@_jit
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


@_jit
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
def _strongest(val, places, k):
    """Places of the k or more strongest firings (all that equal the k-th), strongest first, the earlier of equals."""
    peaks = val[places]
    if k < places.size:
        least = np.partition(peaks, places.size - k)[places.size - k]
        places = places[peaks >= least]
        peaks = val[places]
    return places[np.argsort(-peaks, kind="mergesort")]


@_jit
def _distinct(tok, places, tokens, ctx_len, reach, out):
    """Fill out with places in order, leaving out those whose window is that of an earlier one; how many it took."""
    kept = 0
    for q in places:
        fresh = kept < out.size
        for j in range(kept):
            if not fresh:
                break
            fresh = not _same_window(tokens, tok[q], tok[out[j]], reach, ctx_len)
        if fresh:
            out[kept] = q
            kept += 1
    return kept


@_jit
def tops(indptr, token, act, tokens, ctx_len, reach, out):
    """Places of the K strongest firings [n K], one a context, near-duplicate windows once, -1 where fewer.

    Ties go to the earlier (context, position). Two windows are near duplicates when the tokens within `reach` of
    their peaks are equal; the stronger is kept.
    """
    K = out.shape[1]
    for i in range(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        out[i, :] = -1
        if a == b:
            continue
        tok, val = token[a:b], act[a:b]
        places = np.empty(tok.size, np.int64)
        places = places[: _context_peaks(tok, val, ctx_len, places)]
        # most often the first few hold K distinct windows; only else all are sorted
        kept = _distinct(tok, _strongest(val, places, 3 * K), tokens, ctx_len, reach, out[i])
        if kept < K < places.size:
            kept = _distinct(tok, _strongest(val, places, places.size), tokens, ctx_len, reach, out[i])
        out[i, :kept] += a
        out[i, kept:] = -1
