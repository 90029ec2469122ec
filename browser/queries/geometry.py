"""How an SAE's decoder rows lie, beside what random directions would show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from browser import plots
from browser.templatetags.latent_tags import compact, fixed, thousands
from sae_backend.core import baseline
from sae_backend.models import Sae


@dataclass(frozen=True)
class Count:
    """Latents that have another at a cosine below one, and how many of as many random directions would."""

    below: float
    latents: int
    chance: float

    @property
    def expected(self) -> str:
        return expectation(self.chance)


def expectation(number: float) -> str:
    """An expected number of latents in three digits."""
    return thousands(round(number)) if number >= 100 else compact(number)


@dataclass(frozen=True)
class Geometry:
    opposing: list[Count]
    dimensionality: plots.Distribution | None
    encoder_decoder: plots.Distribution | None
    frobenius: float | None  # features per dimension by norms, on the checkpoint's scale
    live: float | None  # live latents per dimension


def geometry_of(sae: Sae, summary: Mapping[str, Any]) -> Geometry:
    """What a run's summary says; runs of before have no distributions."""
    counts = summary.get("opposing") or {}
    opposing = [Count(c, counts[str(c)], baseline.opposing(sae.d_sae, sae.d_out, c))
                for c in (-0.7, -0.9) if counts.get(str(c)) is not None]  # fmt: skip
    histograms, middles = summary.get("histograms") or {}, summary.get("quantiles") or {}
    return Geometry(
        opposing,
        plots.distribution(histograms.get("dimensionality"), "feature dimensionality", _by_chance(sae, summary)),
        plots.distribution(
            histograms.get("encoder_decoder_cos"), "encoder–decoder cosine", _median(middles, "encoder_decoder_cos")
        ),
        summary.get("features_per_dimension"),
        summary.get("live_per_dimension"),
    )


def _by_chance(sae: Sae, summary: Mapping[str, Any]) -> list[tuple[float, str]]:
    """D_i of as many random directions as there are live latents."""
    counts = summary.get("counts") or {}
    live = sum(n for name, n in counts.items() if name != "dead")
    value = baseline.dimensionality(live, sae.d_out)
    return [(value, f"random {compact(value)}")] if live else []


def _median(quantiles: Mapping[str, Any], column: str) -> list[tuple[float, str]]:
    found = quantiles.get(column)
    return [(found[50], f"median {fixed(found[50])}")] if found else []
