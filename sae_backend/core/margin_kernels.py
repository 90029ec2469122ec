"""Loops over every pre-activation of sampled tokens, compiled by Numba; exact, on one core, without the interpreter."""

from __future__ import annotations

import numba
import numpy as np

_jit = numba.njit(cache=True, nogil=True)
_COLUMNS = 2048  # looked at together: what is kept of them stays in the first cache


@_jit
def closest(bits, shift, weight, need, floor, scale, best, where):
    """Largest (p·weight − floor − need)·scale of each column of p [m d_sae], and its row, the first of equals.

    p comes as the bits of floats that lack `shift` of a float32's; weight, need [d_sae]; floor [m groups] of groups of
    neighbouring columns; scale [m]. best [d_sae] begins as −∞.
    """
    m, d_sae = bits.shape
    width = d_sae // floor.shape[1]
    buffer = np.empty(_COLUMNS, np.int32)
    p = buffer.view(np.float32)
    a = 0
    while a < d_sae:
        group = a // width
        b = min(a + _COLUMNS, (group + 1) * width)
        w, t, top, at = weight[a:b], need[a:b], best[a:b], where[a:b]
        for r in range(m):
            row, low, s = bits[r, a:b], floor[r, group], scale[r]
            for j in range(row.size):
                buffer[j] = np.int32(row[j]) << shift
            for j in range(row.size):
                v = (p[j] * w[j] - low - t[j]) * s
                better = v > top[j]
                top[j] = v if better else top[j]
                at[j] = r if better else at[j]
        a = b


@_jit
def insert(margin, token, margins, tokens):
    """Put each latent's margin [d_sae], and its token, into its list [d_sae n], largest first, equal ones behind."""
    n = margins.shape[1]
    for i in range(margin.size):
        v = margin[i]
        j = n - 1
        if v > margins[i, j]:
            while j > 0 and margins[i, j - 1] < v:
                margins[i, j], tokens[i, j] = margins[i, j - 1], tokens[i, j - 1]
                j -= 1
            margins[i, j], tokens[i, j] = v, token[i]
