"""Density against kurtosis of a run's latents: each as a point where they are few, in bins where they are many."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from browser.queries import latent_filter, latent_list
from browser.queries.saes import ResolvedSae

POINTS = 8_000  # latents sent one by one; more are binned
CELL = 0.04  # decades: side of a bin


def scatter_json(resolved: ResolvedSae) -> dict[str, Any]:
    """log10 density and kurtosis of the latents that have both; in bins where they are more than POINTS.

    A bin's `index` is a latent in it, and its only one where `count` is 1. The fullest bins come last, drawn on top.
    """
    index, density, kurtosis = _latents(resolved.run.pk)
    x, y = np.log10(density), np.log10(kurtosis)
    binned = len(index) > POINTS
    x, y, count, index = _bins(x, y, index) if binned else (x, y, np.ones(len(index), np.int64), index)
    places = {"x": np.round(x, 4).tolist(), "y": np.round(y, 4).tolist()}
    about = {"run": resolved.run.number, "binned": binned, "cell": CELL}
    return {**about, **places, "count": count.tolist(), "index": index.tolist()}


def _latents(run: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Indices, densities and kurtoses, from the packed columns or, for runs that have none, from the table."""
    if columns := latent_filter.columns(run, ("density", "kurtosis")):
        both = np.flatnonzero((columns["density"] > 0) & (columns["kurtosis"] > 0))  # NaN is neither
        return both, columns["density"][both], columns["kurtosis"][both]
    wanted = 'select "index", density, kurtosis from latent where run_id = %s and status > 0 and kurtosis > 0'
    rows = latent_list.fetch(f'{wanted} order by "index"', [run])
    index, density, kurtosis = np.array(rows, np.float64).reshape(-1, 3).T
    return index.astype(np.int64), density, kurtosis


def _bins(x: npt.NDArray[Any], y: npt.NDArray[Any], index: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Middles, counts and least indices of the cells that hold any."""
    i, j = np.floor(x / CELL).astype(np.int64), np.floor(y / CELL).astype(np.int64)
    i0, j0, width = i.min(), j.min(), int(j.max() - j.min()) + 1
    cell = (i - i0) * width + (j - j0)
    count = np.bincount(cell)
    least = np.full(len(count), len(index) and index.max() + 1)
    np.minimum.at(least, cell, index)
    filled = np.flatnonzero(count)
    filled = filled[np.argsort(count[filled], kind="stable")]
    return (filled // width + i0 + 0.5) * CELL, (filled % width + j0 + 0.5) * CELL, count[filled], least[filled]
