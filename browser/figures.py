"""Statistics of one latent: each with its place among those of the other latents, and what it means."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.utils.safestring import SafeString


class Figure(NamedTuple):
    """One entry of the strip or of the table below it."""

    name: SafeString
    column: str
    means: str  # its definition, one sentence
    value: float | None
    percentile: int | None  # among the latents of the SAE that fired
    says: str = ""  # how to read it, in a few words beside it

    @property
    def rank(self) -> str:
        """The percentile in words."""
        return (
            ""
            if self.percentile is None
            else f"{ordinal(self.percentile)} percentile of the latents that fired"
        )


@dataclass(frozen=True)
class _Definition:
    column: str
    name: str
    means: str
    says: str = ""


_DENSITY = _Definition("density", "Density", "Fraction of counted tokens with activation above 0")
_DECODER = (
    _Definition(
        "dimensionality",
        "D<sub>i</sub>",
        "Feature dimensionality, 1 / Σ cos² with live latents' decoder rows: 1 has a dimension to itself",
    ),
    _Definition(
        "encoder_decoder_cos", "cos(enc, dec)", "Cosine of the encoder's column and the decoder's row"
    ),
    _Definition(
        "decoder_norm",
        "‖W<sub>dec</sub>‖",
        "Norm of the decoder row in the checkpoint; activations on this page are those of a row of norm 1",
    ),
    _Definition("b_enc", "b<sub>enc</sub>", "Encoder bias"),
    _Definition("nearest_cos", "Nearest cos", "Largest cosine with another decoder row of this SAE"),
)
STRIP = (
    _DENSITY,
    _Definition("max_act", "Max", "Largest activation, as the length of what the latent writes to the model"),
    _Definition("mean_act", "Mean if active", "Mean over the tokens where it fires"),
    _Definition("kurtosis", "Kurtosis", "Of the activations where it fires, m4 / m2²: a Gaussian has 3"),
    *_DECODER,
)
_OPPOSING = _Definition(
    "opposing_cos", "Opposing cos", "Smallest cosine with another decoder row of this SAE"
)
_NEAREST_LIVE = _Definition(
    "nearest_live_cos", "Nearest live cos", "Largest cosine with the decoder row of another latent that fired"
)
_MARGIN = _Definition(
    "margin",
    "Margin",
    "How far above what a token asks of it its pre-activation came at best; below 0 it missed",
)
_SINCE_FIRED = _Definition(
    "since_fired", "Steps since it fired", "Steps of training since it last fired, as the checkpoint counted them"
)
DEAD_STRIP = (_DENSITY, _MARGIN, _SINCE_FIRED, *_DECODER, _NEAREST_LIVE, _OPPOSING)
SHAPE = (
    _Definition("std_act", "Standard deviation", "Over the tokens where it fires", "how much its strength varies"),
    _Definition(
        "skewness", "Skewness", "Over the tokens where it fires", "above 0: mostly weak firings, a few strong"
    ),
    _Definition(
        "kurtosis",
        "Kurtosis when active",
        "Of the activations where it fires, m4 / m2²",
        "weight of the tails: uniform 1.8, Gaussian 3, exponential 9",
    ),
    _Definition(
        "kurtosis_all",
        "Kurtosis over all tokens",
        "m4 / m2² over all counted tokens, zeros included",
        "about the mean, zeros included: high for whatever is rare",
    ),
    _Definition(
        "kurtosis_zero",
        "Kurtosis about zero",
        "E[a⁴] / E[a²]² over all counted tokens: mostly restates density",
        "1 / density times that of the firings: mostly restates density",
    ),
    _MARGIN,
)
DEAD_WEIGHTS = (
    _Definition(
        "logit_std",
        "Logit effect, std",
        "Standard deviation of the logit effects over the vocabulary",
        "how far it moves a typical logit",
    ),
    _Definition(
        "logit_skewness",
        "Logit effect, skewness",
        "m3 / m2^1.5 over the vocabulary",
        "above 0: a few tokens strongly promoted; below: suppressed",
    ),
    _Definition(
        "logit_kurtosis",
        "Logit effect, kurtosis",
        "m4 / m2² over the vocabulary: a Gaussian has 3",
        "above 3: few tokens stand apart; below: it splits the vocabulary",
    ),
)
_THRESHOLD = _Definition("threshold", "Threshold", "The activation from which it fires")
WEIGHTS = (_THRESHOLD, _SINCE_FIRED, _NEAREST_LIVE, _OPPOSING, *DEAD_WEIGHTS)


def figures(
    definitions: Sequence[_Definition], row: Mapping[str, Any], quantiles: Mapping[str, Any]
) -> list[Figure]:
    """The figures that a latent's row has; undefined ones are kept."""
    return [
        Figure(SafeString(d.name), d.column, d.means, row[d.column], _rank(quantiles, row, d.column), d.says)
        for d in definitions
        if d not in (_THRESHOLD, _SINCE_FIRED) or row[d.column] is not None  # most checkpoints have none
    ]


def _rank(quantiles: Mapping[str, Any], row: Mapping[str, Any], column: str) -> int | None:
    """None for the density and margin of a dead latent, which are below all of them."""
    if column in ("density", "margin") and not row["firings"]:
        return None
    return percentile(quantiles.get(column), row[column])


def percentile(quantiles: Sequence[float] | None, value: float | None) -> int | None:
    """Where a value stands among 101 quantiles; the middle of those that equal it."""
    if not quantiles or value is None:
        return None
    middle = (bisect_left(quantiles, value) + bisect_right(quantiles, value) - 1) / 2
    return int(max(0, min(100, middle)))


def ordinal(n: int) -> str:
    """1st, 2nd, 11th."""
    ending = "th" if 10 <= n % 100 <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def decimals(top: float) -> int:
    """How many an activation needs beside a largest one of this size: three significant digits."""
    return max(0, min(4, 2 - math.floor(math.log10(top)))) if top > 0 else 1
