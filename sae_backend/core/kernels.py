"""Loops that neither NumPy nor torch has, compiled by Numba and cached on disk. All are exact and order-free.

Each runs on one core and releases the interpreter: lanes run several.
"""

from __future__ import annotations

import numba
import numpy as np

from sae_backend.core.selection import keep_best, reduce

_LAST = np.int64(2**31 - 1)  # of places
_GROUP = 16  # firings in a row that share one maximum
_jit = numba.njit(cache=True, nogil=True)
_sums = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})  # in vectors, in whatever order


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


@_sums
def mean_and_std(rows, mean, std):
    """Of each row [n d], into [n 1] each, n - 1 in std."""
    n, d = rows.shape
    for r in range(n):
        row, total, square = rows[r], np.float32(0), np.float32(0)
        for j in range(row.size):
            total += row[j]
        middle = total / np.float32(d)
        for j in range(row.size):
            square += (row[j] - middle) * (row[j] - middle)
        mean[r, 0], std[r, 0] = middle, np.sqrt(square / np.float32(max(1, d - 1)))


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


@numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _largest(act):
    top = act[0]
    for j in range(act.size):
        top = max(top, act[j])
    return top


@_sums
def _total(act):
    total = 0.0
    for j in range(act.size):
        total += np.float64(act[j])
    return total


@_sums
def _powers(act, mean, mean_all):
    """Sums of (a - mean)², ³, ⁴, of (a - mean_all)², ⁴ and of a², a⁴."""
    m2 = m3 = m4 = q2 = q4 = r2 = r4 = 0.0
    for j in range(act.size):
        x = np.float64(act[j])
        d, e, z = (x - mean) ** 2, (x - mean_all) ** 2, x * x
        m2 += d
        m3 += d * (x - mean)
        m4 += d * d
        q2 += e
        q4 += e * e
        r2 += z
        r4 += z * z
    return m2, m3, m4, q2, q4, r2, r4


@_jit
def moments(indptr, act, n_tokens, out):
    """Per latent [n 9]: max, mean, m2, m3, m4 over its firings; mean, m2, m4 over all tokens; Σa⁴·N/(Σa²)²."""
    for i in range(indptr.size - 1):
        a = act[indptr[i] : indptr[i + 1]]
        n = a.size
        if n == 0:
            continue
        total = _total(a)
        mean, mean_all = total / n, total / n_tokens
        m2, m3, m4, q2, q4, r2, r4 = _powers(a, mean, mean_all)
        silent = n_tokens - n
        q2 += silent * mean_all**2
        q4 += silent * mean_all**4
        out[i, 0], out[i, 1] = _largest(a), mean
        out[i, 2], out[i, 3], out[i, 4] = m2 / n, m3 / n, m4 / n
        out[i, 5], out[i, 6], out[i, 7] = mean_all, q2 / n_tokens, q4 / n_tokens
        out[i, 8] = r4 * n_tokens / (r2 * r2)


@_jit
def _interval(act, top, per, n_intervals):
    """1 … n_intervals: which of the equal-width bands of (0, top] holds act, upper edges included.

    per is n_intervals / top. Only beside an edge, where rounding could decide, is it divided: that takes long.
    """
    x = np.float64(act) * per
    whole = np.int64(x)
    if 1e-9 < x - whole < 1 - 1e-9:
        return whole + 1
    return min(n_intervals, max(1, np.int64(np.ceil(np.float64(act) * n_intervals / np.float64(top)))))


@_jit
def histograms(indptr, act, bits, first, bins, intervals):
    """Counts in logarithmic bins [n n_bins] (bits >> 20 is 8 a octave) and in bands of (0, max] [n n_intervals]."""
    n_intervals = intervals.shape[1]
    for i in range(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        if a == b:
            continue
        top = _largest(act[a:b])
        per = n_intervals / np.float64(top)
        for q in range(a, b):
            bins[i, min(bins.shape[1] - 1, max(0, (bits[q] >> 20) - first))] += 1
            intervals[i, _interval(act[q], top, per, n_intervals) - 1] += 1


@_jit
def bands(indptr, act, out):
    """Counts in equal-width bands of (0, max] [n n_bands]."""
    n_bands = out.shape[1]
    for i in range(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        if a < b:
            top = _largest(act[a:b])
            per = n_bands / np.float64(top)
            for q in range(a, b):
                out[i, _interval(act[q], top, per, n_bands) - 1] += 1


@_jit
def _insert(hashes, places, n, h, q):
    """Keep the smallest hashes, ascending, in a short sorted list of n so far; returns its new length."""
    if n == hashes.size:
        if n == 0:
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

    A token's hash depends on (token, latent, seed) alone, so the draw does not depend on how the work was cut; bands
    order by its upper half first, the draws from all by its lower. -1 where a band holds fewer.
    """
    n_intervals = (out.shape[1] - per_random) // per_interval
    hashes = np.empty((n_intervals + 1, max(per_interval, per_random)), np.uint64)
    worst = np.empty(n_intervals + 1, np.uint64)  # a larger hash changes nothing
    filled = np.empty(n_intervals + 1, np.int64)
    for i in range(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        out[i, :] = -1
        if a == b:
            continue
        top = _largest(act[a:b])
        per = n_intervals / np.float64(top)
        filled[:], worst[:] = 0, np.uint64(2**64 - 1)
        for q in range(a, b):
            band = _interval(act[q], top, per, n_intervals) - 1
            h = splitmix(token[q], lo + i, seed)
            for which in range(2):
                size = per_random if which else per_interval
                if h <= worst[band]:
                    s = band * per_interval
                    filled[band] = _insert(hashes[band, :size], out[i, s : s + size], filled[band], h, q)
                    if filled[band] == size and size:
                        worst[band] = hashes[band, size - 1]
                band, h = n_intervals, (h << np.uint64(32)) | (h >> np.uint64(32))


@_jit
def _same_window(tokens, a, b, reach, ctx_len):
    """Whether the tokens within `reach` of places a and b, clipped to their contexts, are the same."""
    if tokens[a] != tokens[b]:
        return False
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
def _group_maxima(bits, out):
    for g in range(out.size):
        group = bits[g * _GROUP : (g + 1) * _GROUP]
        top = group[0]
        for j in range(_GROUP):
            top = max(top, group[j])
        out[g] = top


@_jit
def _strong(bits, m, places):
    """Places of all firings as strong as the m-th strongest of groups in a row; how many, m or more."""
    n, groups = 0, np.empty(bits.size // _GROUP, np.int32)
    _group_maxima(bits, groups)
    least = np.partition(groups, groups.size - m)[groups.size - m]
    for g in range(groups.size + 1):  # the last is the rest, less than a group
        if g == groups.size or groups[g] >= least:
            for q in range(g * _GROUP, min((g + 1) * _GROUP, bits.size)):
                places[n] = q
                n += bits[q] >= least
    return n


@_jit
def _context_peaks(token, bits, ctx_len, places):
    """Of places, ascending, keep each context's strongest firing (the first of equals); how many contexts there are."""
    n, end = 0, np.int64(0)
    for q in places:
        if token[q] >= end:
            end = (token[q] // ctx_len + 1) * ctx_len
            places[n] = q
            n += 1
        elif bits[q] > bits[places[n - 1]]:
            places[n - 1] = q
    return n


@_jit
def _strongest(bits, places, k, keys):
    """Keys of the k strongest firings at these places, strongest first, the earlier of equals; bits of activations.

    A key is the activation's bits above its place counted from the rear. keys has room for more than k.
    """
    m, least = 0, np.int64(-1)
    for q in places:
        key = (np.int64(bits[q]) << 32) | (_LAST - q)
        if key > least:
            keys[m] = key
            m += 1
            if m == keys.size:
                value, m = reduce(keys, m, k, least >> 32)
                least = ((value + 1) << 32) - 1  # later places lose ties
    if m > k:
        keep_best(keys, m, k)
        m = k
    found = keys[:m]
    found.sort()
    return found[::-1]


@_jit
def _distinct(tok, keys, tokens, ctx_len, reach, out):
    """Fill out with the keys' places in order but those whose window is that of an earlier one; how many it took."""
    kept = 0
    for key in keys:
        q = _LAST - (key & _LAST)
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
def _chosen(tok, bits, places, most, tokens, ctx_len, reach, keys, out):
    """Fill out from the strongest contexts, at most so many, among places; how many it took, of how many contexts."""
    places = places[: _context_peaks(tok, bits, ctx_len, places)]
    keys = _strongest(bits, places, min(most, places.size), keys)
    return _distinct(tok, keys, tokens, ctx_len, reach, out), places.size


@_jit
def tops(indptr, token, bits, tokens, ctx_len, reach, out):
    """Places of the K strongest firings [n K], one a context, near-duplicate windows once, -1 where fewer.

    bits are those of the activations, which are positive. Ties go to the earlier (context, position). Two windows are
    near duplicates when the tokens within `reach` of their peaks are equal; the stronger is kept.
    """
    K = out.shape[1]
    few, keys = 3 * K, np.empty(16 * K, np.int64)  # most often the first few contexts hold K distinct windows
    for i in range(indptr.size - 1):
        a, b = indptr[i], indptr[i + 1]
        tok, val, kept, n = token[a:b], bits[a:b], 0, 0
        places = np.empty(b - a + 1, np.int64)
        if tok.size >= 4 * few * _GROUP:  # every stronger firing is among these, so every stronger context is
            some = places[: _strong(val, few, places)]
            kept, _ = _chosen(tok, val, some, few, tokens, ctx_len, reach, keys, out[i])
        if kept < K:
            every = _all_of(places[: b - a])
            kept, n = _chosen(tok, val, every, few, tokens, ctx_len, reach, keys, out[i])
        if kept < K and n > few:
            every = _all_of(places[: b - a])
            kept, _ = _chosen(tok, val, every, n, tokens, ctx_len, reach, np.empty(n + 1, np.int64), out[i])
        out[i, :kept] += a
        out[i, kept:] = -1


@_jit
def _all_of(places):
    for q in range(places.size):
        places[q] = q
    return places
