"""The figures of a finished run, listed on its job's page: one line here for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from browser.plots import L0_CENTILES, l0_centiles
from browser.templatetags.latent_tags import compact, fixed, percent, thousands

Summary = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A figure as it is shown."""

    name: str
    means: str
    text: str


@dataclass(frozen=True)
class _Line:
    name: str
    means: str
    text: Callable[[Summary], str]  # raises KeyError or TypeError where the summary lacks it


def _l0(summary: Summary) -> str:
    low, middle, high = l0_centiles(summary["l0_histogram"])
    return f"{fixed(summary['l0'], 1)} (median {middle}; {low} to {high})"


def _counts(summary: Summary) -> str:
    counts = summary["counts"]
    return ", ".join(f"{thousands(counts[name])} {name}" for name in ("alive", "rare", "dead", "dense") if counts[name])


def _cross_entropy(summary: Summary) -> str:
    ce = summary["ce"]
    return f"{percent(ce['recovered'])} ({fixed(ce['clean'], 3)} → {fixed(ce['spliced'], 3)} nats)"


def _basis(summary: Summary) -> str:
    basis = summary["basis_kurtosis"]
    return f"{fixed(basis['plain'], 2)} (rotated {fixed(basis['rotated'], 2)})"


def _dtype_difference(summary: Summary) -> str:
    difference = summary["dtype_difference"]
    kept, off, (ours, exact) = percent(difference["firings_kept"]), percent(difference["act"]), difference["fvu"]
    return f"{kept} of firings kept, activations off by {off}, FVU {fixed(ours, 4)} for {fixed(exact, 4)}"


LINES = (
    _Line("Tokens counted", "Special tokens are not", lambda s: thousands(s["tokens"])),
    _Line("Latents", "By what became of them on these tokens", _counts),
    _Line(
        "L0",
        f"Latents active per token: mean, median, and the {L0_CENTILES[0]}th to {L0_CENTILES[2]}th percentile",
        _l0,
    ),
    _Line("FVU", "Fraction of variance unexplained: mean ‖x − x̂‖² over mean ‖x − x̄‖²", lambda s: fixed(s["fvu"], 3)),
    _Line("Normalised MSE", "Mean of ‖x − x̂‖²/‖x‖² per token", lambda s: fixed(s["normalised_mse"], 3)),
    _Line(
        "CE recovered",
        "(CE with zeros − CE with the SAE) / (CE with zeros − CE of the model); CE of the model → with the SAE",
        _cross_entropy,
    ),
    _Line("Nearest cos", "Mean of each live latent's largest decoder cosine", lambda s: fixed(s["mean_nearest_cos"])),
    _Line(
        "Features per dimension",
        "‖W_dec‖² over d_in on the checkpoint's own scale",
        lambda s: compact(s["features_per_dimension"]),
    ),
    _Line(
        "Basis kurtosis",
        "Kurtosis over the coordinates of the hidden state, mean over tokens; its control under a random rotation is 3 "
        "where no coordinate is privileged",
        _basis,
    ),
    _Line("Computed in", "Number format and device of the workers", lambda s: f"{s['dtype']} on {s['device']}"),
    _Line(
        "Against float32",
        "A few contexts computed again in float32, from the text on: its firings that fire here too, the median "
        "relative difference of their activations, and both FVU",
        _dtype_difference,
    ),
)


def figures(summary: Summary) -> list[Figure]:
    """Those that the run has."""
    return [Figure(line.name, line.means, text) for line in LINES if (text := _text(line, summary))]


def _text(line: _Line, summary: Summary) -> str:
    try:
        return line.text(summary)
    except (KeyError, TypeError):  # an older run, or undefined for this SAE
        return ""
