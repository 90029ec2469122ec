"""Two SAEs with live runs and a comparison of planted directions, without any computation on a worker."""

from __future__ import annotations

from typing import Any

import numpy as np

from sae_backend.comparisons import packed
from sae_backend.core.matching import N_BEST, Side
from sae_backend.models import Comparison, Sae
from tests.browser import sae_rows

D, SHARED, SPLIT, CHILDREN, COS = 400, 150, 20, 3, 0.8
TOKENS = 4096
# Latents by index, after sae_rows' 20 dead ones: shared ones, parents of CHILDREN each, and the rest only there.
FIRST = sae_rows.DEAD
N_SMALL, N_LARGE = 220, 300


def saes() -> tuple[Sae, Sae]:
    """The smaller and the larger, both published."""
    rows = []
    for name, n, fvu in (("topk8-220", N_SMALL, 0.142), ("topk8-300", N_LARGE, 0.121)):
        sae = sae_rows.new_sae(name, slug=name, d_sae=n)
        rows.append(sae_rows.publish(sae, figures={**sae_rows.FIGURES, "fvu": fvu}).sae)
    return rows[0], rows[1]


def directions() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Orthogonal unit rows but for children, each at COS of its parent."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]
    small = basis[:N_SMALL]
    parents = basis[FIRST + SHARED : FIRST + SHARED + SPLIT].repeat(CHILDREN, 0)
    children = COS * parents + (1 - COS**2) ** 0.5 * basis[N_SMALL : N_SMALL + SPLIT * CHILDREN]
    rest = N_LARGE - FIRST - SHARED - SPLIT * CHILDREN
    own = basis[N_SMALL + SPLIT * CHILDREN : N_SMALL + SPLIT * CHILDREN + rest]
    return small, np.concatenate([basis[-FIRST:], basis[FIRST : FIRST + SHARED], children, own])


def sides() -> tuple[Side, Side]:
    small, large = directions()
    return _side(small, large), _side(large, small)


def _side(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> Side:
    cos = (one @ other.T).astype(np.float32)
    cos[:, :FIRST] = -1
    best = np.argsort(-cos, axis=1, kind="stable")[:, :N_BEST]
    n = len(one)
    fires = 10 + np.arange(n) % 90
    live = np.arange(n) >= FIRST
    values = np.take_along_axis(cos, best, 1)
    return Side(
        best.astype(np.uint32), values, live, (fires * live).astype(np.uint32),
        (fires * live // 2 * (values[:, 0] > 0.5)).astype(np.uint32),
    )  # fmt: skip


def done(a: Sae, b: Sae) -> Comparison:
    """A comparison that a worker has finished."""
    points = [{"near": near, "fvu": 0.14 - 0.001 * i, "l0": 0.5 * i} for i, near in enumerate((0.5, 0.7, None))]
    of = {"l0": 8.1, "fvu": 0.14, "normalised_mse": 0.15, "stitched": points}
    both = {side: {**of, "run": 1, "run_id": sae.current_run_id} for side, sae in (("a", a), ("b", b))}
    summary = {"dataset": "moonlight", "dataset_id": 1, "contexts": 256, "tokens": TOKENS, "dtype": "float32", **both}
    one, other = sides()
    arrays = packed.blobs("a", one) | packed.blobs("b", other)
    row = Comparison.objects.create(a=a, b=b, state=Comparison.State.DONE, summary=summary, **arrays)
    Comparison.objects.filter(pk=row.pk).update(done_at=row.created_at)
    Sae.objects.filter(pk__in=(a.pk, b.pk)).update(compared=1)
    return row
