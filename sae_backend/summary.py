"""Figures of a whole run that its tables hold: counts by status, percentiles, histograms for the SAE page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from django.db import connection

from sae_backend.models import STATUS_NAMES

DENSITY_LOW, DENSITY_STEP, DENSITY_BINS = -8.0, 0.125, 64  # log10
BINS = 48  # of other statistics, from the least to the greatest
KURTOSIS_LOW, KURTOSIS_STEP, KURTOSIS_BINS = 0.0, 0.125, 72  # log10


def from_tables(latent: str, columns: list[str]) -> dict[str, Any]:
    """Everything the SAE page shows of all latents at once, from the run's own table."""
    return {
        "counts": _counts(latent),
        "quantiles": {c: _quantiles(latent, c) for c in columns},
        "density_histogram": _density(latent),
        "scatter": _scatter(latent),
        "opposing": {str(c): _scalar(f"select count(*) from {latent} where opposing_cos < {c}") for c in (-0.7, -0.9)},
        "histograms": {c: _histogram(latent, c) for c in ("dimensionality", "encoder_decoder_cos")},
        "mean_nearest_cos": _scalar(f"select avg(nearest_cos) from {latent} where status > 0"),
    }


def in_words(figures: Mapping[str, Any]) -> str:
    """What a run's log says of it when it is done."""
    recovered = (figures.get("ce") or {}).get("recovered")
    said = (("L0", figures.get("l0"), ".1f"), ("FVU", figures.get("fvu"), ".3f"), ("CE recovered", recovered, ".1%"))
    known = [f"{name} {value:{style}}" for name, value, style in said if value is not None]
    return f"measured: {', '.join(known) or 'nothing, for no token was counted'}"


def _rows(query: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def _scalar(query: str) -> Any:
    return _rows(query)[0][0]


def _counts(latent: str) -> dict[str, int]:
    found = dict(_rows(f"select status, count(*) from {latent} group by status"))
    return {name: found.get(i, 0) for i, name in enumerate(STATUS_NAMES)}


def _quantiles(latent: str, column: str) -> list[float] | None:
    """Percentiles 0 … 100 over the latents that fired."""
    steps = ",".join(str(i / 100) for i in range(101))
    return _scalar(
        f"select percentile_cont(array[{steps}]) within group (order by {column}) from {latent} where status > 0"
    )


def _histogram(latent: str, column: str) -> dict[str, Any] | None:
    """Of a statistic over the latents that fired, from its least to its greatest; None where it does not vary."""
    among = f"from {latent} where status > 0 and {column} is not null"
    low, high = _rows(f"select min({column}), max({column}) {among}")[0]
    if low is None or not low < high:
        return None
    bins = f"least({BINS}, width_bucket({column}, {low!r}::float8, {high!r}::float8, {BINS}))"
    counts = np.zeros(BINS, int)
    for i, n in _rows(f"select {bins}, count(*) {among} group by 1"):
        counts[i - 1] = n
    return {"low": low, "step": (high - low) / BINS, "counts": counts.tolist()}


def _density(latent: str) -> dict[str, Any]:
    bins = f"least({DENSITY_BINS - 1}, greatest(0, floor((log(density) - ({DENSITY_LOW})) / {DENSITY_STEP})))::int"
    counts = np.zeros(DENSITY_BINS, int)
    for i, n in _rows(f"select {bins}, count(*) from {latent} where status > 0 group by 1"):
        counts[i] = n
    return {"low": DENSITY_LOW, "step": DENSITY_STEP, "counts": counts.tolist()}


def _scatter(latent: str) -> dict[str, Any]:
    """Latents by log10 density and log10 kurtosis, counts[x][y]."""
    x = f"least({DENSITY_BINS - 1}, greatest(0, floor((log(density) - ({DENSITY_LOW})) / {DENSITY_STEP})))::int"
    y = f"least({KURTOSIS_BINS - 1}, greatest(0, floor((log(kurtosis) - ({KURTOSIS_LOW})) / {KURTOSIS_STEP})))::int"
    counts = np.zeros((DENSITY_BINS, KURTOSIS_BINS), int)
    for i, j, n in _rows(f"select {x}, {y}, count(*) from {latent} where status > 0 and kurtosis > 0 group by 1, 2"):
        counts[i, j] = n
    return {"x_low": DENSITY_LOW, "x_step": DENSITY_STEP, "y_low": KURTOSIS_LOW, "y_step": KURTOSIS_STEP,
            "counts": counts.tolist()}
