"""What a latent's logit effects amount to: their class, and the sets of tokens that they tell from the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from browser import logit_classes
from browser.templatetags.latent_tags import compact
from sae_backend.models import Run

NOTABLE = 6.0  # standard errors: of 14 sets drawn at random for each of a million latents, 0.03 have as much
SHOWN = 5  # sets on a page


@dataclass(frozen=True)
class SetEffect:
    """A latent's mean logit effect on a set of tokens."""

    name: str
    means: str  # what is in the set
    tokens: int
    z: float | None  # the mean in standard errors; None for an empty set
    shift: float | None  # the mean in standard deviations of the latent's effects
    width: int = 0  # per cent of the longest bar

    @property
    def notable(self) -> bool:
        return self.z is not None and abs(self.z) >= NOTABLE


def effects(run: Run, z: npt.NDArray[np.float32]) -> list[SetEffect]:
    """Every set of the run, in its order; none for a run without."""
    told = run.summary.get("token_sets") or {}
    sets: list[Mapping[str, Any]] = told.get("sets") or []
    return [_effect(s, x, int(told["d_vocab"])) for s, x in zip(sets, z.tolist(), strict=False)]


def _effect(of: Mapping[str, Any], z: float, d_vocab: int) -> SetEffect:
    m = int(of["size"])
    if not math.isfinite(z):
        return SetEffect(of["name"], of["means"], m, None, None)
    shift = z * math.sqrt((d_vocab - m) / (m * (d_vocab - 1)))
    return SetEffect(of["name"], of["means"], m, z, shift)


@dataclass(frozen=True)
class LogitMeaning:
    """What stands beside the lists of promoted and suppressed tokens."""

    name: str  # of the class, or "" for none
    reason: str
    sets: list[SetEffect]  # the notable ones
    tested: int  # sets that the run has
    least: float = NOTABLE


def meaning(run: Run, values: Mapping[str, Any], z: npt.NDArray[np.float32]) -> LogitMeaning | None:
    """None where there are no logit effects, or none with a shape."""
    if values["logit_kurtosis"] is None:
        return None
    of, found = logit_classes.class_of(values), effects(run, z)
    moments = f"kurtosis {compact(values['logit_kurtosis'])}, skewness {compact(values['logit_skewness'])}"
    reason = f"{moments}: {of.does if of else logit_classes.WITHOUT}"
    return LogitMeaning(of.name if of else "", reason, strongest(found), sum(e.z is not None for e in found))


def strongest(found: list[SetEffect]) -> list[SetEffect]:
    """The notable ones, strongest first, with the lengths of their bars."""
    notable = sorted((e for e in found if e.notable), key=lambda e: -abs(e.z or 0))[:SHOWN]
    longest = max((abs(e.shift or 0) for e in notable), default=1)
    return [replace(e, width=round(100 * abs(e.shift or 0) / longest)) for e in notable]


def as_json(run: Run, z: npt.NDArray[np.float32]) -> list[dict[str, Any]] | None:
    """All sets with their z and mean effect in standard deviations; None for a run without."""
    found = effects(run, z)
    return [{"set": e.name, "tokens": e.tokens, "z": _short(e.z), "shift": _short(e.shift)} for e in found] or None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")
