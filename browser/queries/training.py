"""An SAE through training: the checkpoints of its series, latents born and dead between them, and one latent."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from django.db import connection
from django.urls import reverse

from browser.errors import LatentNotFound, NotFound
from browser.queries.saes import ResolvedSae
from browser.training_chart import Fan, fan
from sae_backend import packed_columns, series
from sae_backend.models import STATUS_NAMES, Sae, SeriesCosine

NAMED = 12  # latents born, or dead, that are linked
CENTILES = (5, 25, 50, 75, 95)
Ints = npt.NDArray[np.int64]
_LATENT = """
    select s.sha256, s.name, s.step, l.status, l.firings, l.density, l.max_act,
        case when c.final_id = last_value(s.id) over series then substring(c.cos from %s for 4) end
    from sae_backend_sae s
    left join sae_backend_seriescosine c on c.sae_id = s.id
    left join lateral (
        select status, firings, density, max_act from latent where run_id = s.current_run_id and index = %s offset 0
    ) l on true
    where s.series = %s and s.owner_id is not distinct from %s and s.lm_id = %s and s.hook_name = %s
        and s.hook_name_out = %s and s.d_sae = %s and s.d_out = %s and s.step is not null
    window series as (order by s.step, s.id rows between unbounded preceding and unbounded following)
    order by s.step, s.id
"""


@dataclass(frozen=True)
class At:
    """One latent at one step; None where that step has no run yet."""

    sae: str  # public id
    name: str
    step: int
    index: int
    here: bool  # the page that shows this is of this step
    status: str | None
    firings: int | None
    density: float | None
    max_act: float | None
    cos: float | None  # of its decoder direction to the final one

    @property
    def url(self) -> str:
        return reverse("latent_detail", args=[self.sae, self.index])

    def as_json(self) -> dict[str, Any]:
        keys = ("sae", "name", "step", "status", "firings", "density", "max_act", "cos")
        return {key: getattr(self, key) for key in keys} | {"url": self.url}


@dataclass(frozen=True)
class LatentTraining:
    """One latent through training, for its section and for a page."""

    resolved: ResolvedSae
    index: int
    steps: list[At]
    template: ClassVar[str] = "browser/latent_training.html"

    @property
    def cosines(self) -> Fan | None:
        return fan([(s.step, [s.cos]) for s in self.steps if s.cos is not None], log=False)

    @property
    def densities(self) -> Fan | None:
        return fan([(s.step, [s.density]) for s in self.steps if s.density], log=True)

    def as_json(self) -> dict[str, Any]:
        return {"series": self.resolved.sae.series, "index": self.index, "steps": [s.as_json() for s in self.steps]}


def latent(resolved: ResolvedSae, index: int) -> LatentTraining | None:
    """One latent at every step, in one query; None where the SAE is in no series of several."""
    sae = resolved.sae
    if not sae.series:
        return None
    if index >= sae.d_sae:
        raise LatentNotFound(sae, index, resolved.address)
    with connection.cursor() as cursor:
        same = [sae.series, sae.owner_id, sae.lm_id, sae.hook_name, sae.hook_name_out, sae.d_sae, sae.d_out]
        cursor.execute(_LATENT, [4 * index + 1, index, *same])
        rows = cursor.fetchall()
    steps = [_at(row, index, sae, is_final=i == len(rows) - 1) for i, row in enumerate(rows)]
    return LatentTraining(resolved, index, steps) if len(steps) > 1 else None


def _at(row: Sequence[Any], index: int, sae: Sae, is_final: bool) -> At:
    sha256, name, step, status, firings, density, max_act, packed = row
    said = STATUS_NAMES[status] if status is not None else None
    cos = 1.0 if is_final else struct.unpack("<f", bytes(packed))[0] if packed else None
    cos = None if cos is None or cos != cos else round(cos, 6)
    return At(sha256[:12], name, step, index, sha256 == sae.sha256, said, firings, density, max_act, cos)


# ---- the whole series --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One checkpoint of a series; None where it is not known."""

    sae: Sae
    summary: dict[str, Any]
    dataset: str | None
    here: bool
    born: int | None  # latents that were dead at the step before
    died: int | None
    first_born: list[int]  # the densest of them
    first_died: list[int]  # those that had been densest
    cos: list[float] | None  # CENTILES over latents

    @property
    def densities(self) -> list[float] | None:
        """CENTILES of density over latents that fired."""
        quantiles = (self.summary.get("quantiles") or {}).get("density")
        return [quantiles[c] for c in CENTILES] if quantiles and quantiles[5] is not None else None

    def as_json(self) -> dict[str, Any]:
        s = self.summary
        return {
            "sae": self.sae.public_id, "name": self.sae.name, "step": self.sae.step, "dataset": self.dataset,
            "counts": s.get("counts"), "born": self.born, "died": self.died, "l0": s.get("l0"), "fvu": s.get("fvu"),
            "normalised_mse": s.get("normalised_mse"), "ce_recovered": (s.get("ce") or {}).get("recovered"),
            "density_centiles": self.densities, "cos_centiles": self.cos,
            "url": reverse("sae_detail", args=[self.sae.public_id]),
        }  # fmt: skip


@dataclass(frozen=True)
class SeriesPage:
    """An SAE through training."""

    resolved: ResolvedSae
    steps: list[Step]
    template: ClassVar[str] = "browser/sae_training.html"
    centiles: ClassVar[tuple[int, ...]] = CENTILES

    @property
    def final(self) -> Step:
        return self.steps[-1]

    @property
    def datasets(self) -> list[str]:
        """On what the steps were measured: two are a reason not to compare them."""
        return sorted({s.dataset for s in self.steps if s.dataset})

    @property
    def errors(self) -> Fan | None:
        return fan([(s.sae.step or 0, [s.summary["fvu"]]) for s in self.steps if s.summary.get("fvu")], log=True)

    @property
    def densities(self) -> Fan | None:
        return fan([(s.sae.step or 0, s.densities) for s in self.steps if s.densities], log=True)

    @property
    def cosines(self) -> Fan | None:
        known = [(s.sae.step or 0, s.cos) for s in self.steps if s.cos]
        return fan([*known, (self.final.sae.step or 0, [1.0] * len(CENTILES))], log=False) if known else None

    @property
    def changed(self) -> list[Step]:
        """Steps by which latents were born or died."""
        return [s for s in self.steps if s.born or s.died]

    def as_json(self) -> dict[str, Any]:
        sae = self.resolved.sae
        place = {"series": sae.series, "model": sae.lm.name, "hook_name": sae.hook_name, "d_sae": sae.d_sae}
        return {**place, "centiles": list(CENTILES), "steps": [s.as_json() for s in self.steps]}


def page(resolved: ResolvedSae) -> SeriesPage:
    """The whole series; NotFound where the SAE is in none."""
    members = list(series.members(resolved.sae).select_related("current_run__dataset"))
    if not members:
        raise NotFound("There is no series", _HOW.format(resolved.sae.name))
    runs = tuple(sae.current_run_id for sae in members)
    changes = _changes(runs)
    cosines = _cosines(tuple(sae.pk for sae in members), resolved.sae.series_at)
    return SeriesPage(
        resolved,
        [_step(sae, sae.pk == resolved.sae.pk, change, cosines.get(sae.pk))
         for sae, change in zip(members, changes, strict=True)],
    )  # fmt: skip


_HOW = (
    "{} is not among several checkpoints of one training. Give two or more the same series in their settings, each "
    "with its step."
)
_Change = tuple[int | None, int | None, list[int], list[int]]


def _step(sae: Sae, here: bool, change: _Change, cos: list[float] | None) -> Step:
    run = sae.current_run
    return Step(sae, run.summary if run else {}, run.dataset.name if run else None, here, *change, cos)


@lru_cache(maxsize=32)
def _changes(runs: tuple[int | None, ...]) -> list[_Change]:
    """Births and deaths since the step before, of published runs, which never change."""
    columns = [packed_columns.read(run, ["status", "density"]) if run else {} for run in runs]
    return [(None, None, [], []), *(_between(a, b) for a, b in zip(columns, columns[1:], strict=False))]


def _between(before: dict[str, npt.NDArray[Any]], now: dict[str, npt.NDArray[Any]]) -> _Change:
    if not ("status" in before and "status" in now):
        return None, None, [], []
    dead, still = before["status"] == 0, now["status"] == 0
    born, died = np.flatnonzero(dead & ~still), np.flatnonzero(~dead & still)
    return len(born), len(died), _densest(born, now["density"]), _densest(died, before["density"])


def _densest(latents: Ints, density: npt.NDArray[np.float64]) -> list[int]:
    found: list[int] = latents[np.argsort(-density[latents], kind="stable")][:NAMED].tolist()
    return found


@lru_cache(maxsize=32)
def _cosines(members: tuple[int, ...], version: object) -> dict[int, list[float]]:
    """CENTILES of the cosines of each member that has them; `version` is of the series, for what is kept."""
    found = {}
    for sae, packed in SeriesCosine.objects.filter(sae__in=members, final=members[-1]).values_list("sae_id", "cos"):
        cos = np.frombuffer(bytes(packed), "<f4")
        if np.isfinite(cos).any():
            found[sae] = np.nanpercentile(cos, CENTILES).astype(float).round(6).tolist()
    return found
