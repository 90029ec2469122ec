"""What random directions would show: n unit vectors drawn uniformly, independently, in d dimensions. Free of NumPy.

The cosine of two of them has density ∝ (1 − t²)^((d − 3)/2), so P(cos < −c) = ½ I_{1−c²}((d − 1)/2, ½), with I the
regularised incomplete beta function (Cai, Fan, Jiang, "Distributions of angles in random packing on spheres", 2013).
"""

from __future__ import annotations

import math


def opposing(n: int, d: int, cos: float) -> float:
    """How many of n directions are expected to have another at a cosine below cos.

    Exact: the cosines of one direction with the n − 1 others are independent, and expectations add up.
    """
    p = below(d, cos)
    if p >= 1 or n < 2:
        return float(n) if n > 1 else 0.0
    return -n * math.expm1((n - 1) * math.log1p(-p))


def below(d: int, cos: float) -> float:
    """P(the cosine of two directions < cos)."""
    if cos > 0:
        return 1 - below(d, -cos)
    if d < 2 or cos <= -1:
        return 0.5 if d < 2 and cos > -1 else 0.0
    a, x = (d - 1) / 2, cos * cos
    # either is exact; the second loses digits where the first is small, and the first takes long where x is
    return 0.5 * (_beta(a, 0.5, 1 - x) if a * x > 9 or x > 0.5 else 1 - _beta(0.5, a, x))


def _beta(a: float, b: float, x: float) -> float:
    """I_x(a, b) = x^a (1 − x)^b / (a B(a, b)) · Σ_k Π_{j<k} (a + b + j)/(a + 1 + j) · x^k: every term is positive."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    term, total, ratio, k = 1.0, 1.0, 1.0, 0
    while ratio >= 1 or term > 1e-16 * total * (1 - ratio):  # ratios fall, so what is left out is a geometric series
        ratio = x * (a + b + k) / (a + 1 + k)
        term, k = term * ratio, k + 1
        total += term
    return min(1.0, math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta - math.log(a)) * total)


def dimensionality(n: int, d: int) -> float:
    """D_i of one of n random directions: E cos² is 1/d, so 1/(1 + (n − 1)/d), about d/(n + d)."""
    return d / (d + max(0, n - 1))
