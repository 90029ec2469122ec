"""Classes of latents by the moments of their logit effects: one definition for pages, tables, filters and data.

After "Understanding SAE features with the logit lens" (Bloom and Lin, 2024), which names the classes;
docs/statistics.md argues the thresholds, which are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEAVY, SKEWED, FLAT = 4.0, 0.5, 2.8
Bound = tuple[str, str, float]  # column, ">=" or "<=", bound


@dataclass(frozen=True)
class LogitClass:
    """A class: all that is in its bounds."""

    name: str
    does: str
    bounds: tuple[Bound, ...]

    def has(self, values: Mapping[str, Any]) -> bool:
        return all(_within(values[column], than, bound) for column, than, bound in self.bounds)


def _within(value: float | None, than: str, bound: float) -> bool:
    return value is not None and (value >= bound if than == ">=" else value <= bound)


_TAILED = ("logit_kurtosis", ">=", HEAVY)
CLASSES = (
    LogitClass("prediction", "promotes a few tokens far above the rest", (_TAILED, ("logit_skewness", ">=", SKEWED))),
    LogitClass(
        "suppression", "suppresses a few tokens far below the rest", (_TAILED, ("logit_skewness", "<=", -SKEWED))
    ),
    LogitClass(
        "partition", "promotes one part of the vocabulary and suppresses the other", (("logit_kurtosis", "<=", FLAT),)
    ),
)
BY_NAME = {of.name: of for of in CLASSES}
WITHOUT = "neither a few tokens nor two parts of the vocabulary stand apart"


def class_of(values: Mapping[str, Any]) -> LogitClass | None:
    """The class of a latent's logit effects, if it has one."""
    return next((of for of in CLASSES if of.has(values)), None)


def class_name(values: Mapping[str, Any]) -> str | None:
    found = class_of(values)
    return found.name if found else None
