"""Two SAEs of one hook point: best cosines between their decoder rows each way, and how they fire on the same tokens.

Cosines: a matmul [n d] × [d n'] each way, in bfloat16 where that is quicker; of the few that may be among a latent's
best by the rounding's bound, each is computed again in float64. Latents that never fired are nobody's counterpart.
Stitching, adding what only the other SAE has: Leask et al., "Sparse Autoencoders Do Not Find Canonical Units of
Analysis", 2025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae_backend.core.encode import BlockEncoder, Firings, RunningTopK
from sae_backend.core.fidelity import Sums, figures, merged
from sae_backend.core.lanes import lanes
from sae_backend.core.language_model import LM
from sae_backend.core.matching import N_BEST
from sae_backend.core.neighbours import Directions
from sae_backend.core.run import RunError
from sae_backend.core.sae import SparseActs, SparseAutoencoder, top_k

SAMPLE_TOKENS = 65_536  # on which both SAEs are measured
STITCHED = (0.5, 0.6, 0.7, 0.8, 0.9, None)  # thresholds below which latents are added; None adds all
_ROWS, _COLUMNS = 256, 2048  # of one block of cosines on a CPU
_CANDIDATES = 32  # rough cosines kept of each latent
_EXACT = 2**22  # products of one exact comparison held at once
_ROUNDING = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6}  # of a cosine, relative to it
_BATCH = 16  # contexts
Report = Callable[[int], None]
Ids = npt.NDArray[np.uint32]
Cosines = npt.NDArray[np.float32]


# ---- directions --------------------------------------------------------------------------------------


@torch.no_grad()
def counterparts(
    of: Directions, among: Directions, live: npt.NDArray[np.bool_], report: Report = lambda done: None
) -> tuple[Ids, Cosines]:
    """ids, cosines [n N_BEST]: of each latent the largest cosines with the other SAE's latents that are `live`.

    Exact; of equal ones the lower latent first; NaN where there are fewer, or one of the two has no direction.
    """
    search = _Search(of, among, live)
    blocks = [(a, min(a + _ROWS, len(of.unit))) for a in range(0, len(of.unit), _ROWS)]
    ids, cosines = np.zeros((len(of.unit), N_BEST), np.uint32), np.full((len(of.unit), N_BEST), np.nan, np.float32)
    if search.m:
        for (a, b), found in zip(blocks, lanes(of.unit.device).map(search.block, blocks), strict=True):
            ids[a:b, : search.m], cosines[a:b, : search.m] = found
            report(b)
    without = ~of.directed.cpu().numpy()
    ids[without], cosines[without] = 0, np.nan
    return ids, cosines


class _Search:
    """One SAE's rows among the other's that may be a counterpart."""

    def __init__(self, of: Directions, among: Directions, live: npt.NDArray[np.bool_]) -> None:
        self.of, self.directed = of, of.directed.cpu().numpy()
        self.columns = np.flatnonzero(live & among.directed.cpu().numpy())
        kept = torch.from_numpy(self.columns).to(among.unit.device)
        self.unit, self.rough = among.unit[kept], among.rough[kept]
        self.m = min(N_BEST, len(kept))
        lost = (self.unit - self.rough.float()).norm(dim=1)
        self.lost = float(lost.max()) if len(lost) else 0.0

    def block(self, rows: tuple[int, int]) -> tuple[Ids, Cosines]:
        """Of latents lo ≤ i < hi."""
        unit, rough = self.of.unit[slice(*rows)], self.of.rough[slice(*rows)]
        row, column, value = self._candidates(rough)
        best = _mth_best(row, value, len(rough), self.m)
        slack = (unit - rough.float()).norm(dim=1).cpu().numpy() + self.lost + 2e-6
        least = best - 2 * (slack + _ROUNDING[rough.dtype] * np.abs(best))
        counts, weakest = np.bincount(row, minlength=len(rough)), np.full(len(rough), np.inf, np.float32)
        np.minimum.at(weakest, row, value)
        # of rows with too many alike, or too few clearly above zero, everything is compared
        unseen = ((counts == _CANDIDATES) & (weakest >= least)) | (least <= 0)
        open_ = (counts < self.m) | (unseen & (counts < len(self.columns)))
        open_ &= self.directed[slice(*rows)]
        sure = (value >= least[row]) & ~open_[row]
        ids, cosines = self._placed(unit, row[sure], column[sure])
        if open_.any():
            ids[open_], cosines[open_] = self._all(unit[torch.from_numpy(open_).to(unit.device)])
        return self.columns[ids].astype(np.uint32), cosines

    def _candidates(self, rough: Tensor) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Cosines]:
        """Row, column and rough value of the largest positive cosines, at most _CANDIDATES of a row."""
        k = min(_CANDIDATES, len(self.columns))
        if rough.device.type != "cpu":
            values, places = (rough @ self.rough.T).topk(k, dim=1)
            row = torch.arange(len(rough), device=rough.device)[:, None].expand_as(values)
            positive = values > 0
            found = row[positive].cpu().numpy(), places[positive].cpu().numpy()
            return *found, values[positive].cpu().numpy()
        running = RunningTopK(len(rough), k, rough.dtype)
        for c in range(0, len(self.rough), _COLUMNS):
            running.add(rough @ self.rough[c : c + _COLUMNS].T, c)
        chosen = running.chosen()
        return chosen.rows().numpy(), chosen.latent.numpy().astype(np.int64), chosen.act.numpy()

    def _placed(
        self, unit: Tensor, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], Cosines]:
        """The m best of each row's candidates by exact cosine, rounded to float32."""
        cos = np.concatenate([self._dots(unit, r, c) for r, c in _pieces(row, column, unit.shape[1])])
        order = np.lexsort((column, -cos, row))
        row, column, cos = row[order], column[order], cos[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        first = rank < self.m
        ids, cosines = np.zeros((len(unit), self.m), np.int64), np.full((len(unit), self.m), np.nan, np.float32)
        ids[row[first], rank[first]], cosines[row[first], rank[first]] = column[first], cos[first]
        return ids, cosines

    def _dots(self, unit: Tensor, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> Cosines:
        a, b = torch.from_numpy(row).to(unit.device), torch.from_numpy(column).to(unit.device)
        cos: Cosines = (unit[a].double() * self.unit[b].double()).sum(1).float().cpu().numpy()
        return cos

    def _all(self, unit: Tensor) -> tuple[npt.NDArray[np.int64], Cosines]:
        """The m best of whole rows in float64, rounded to float32."""
        parts = [self._whole(rows) for rows in unit.split(max(1, _EXACT // len(self.columns)))]
        ids, cosines = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(cosines)

    def _whole(self, unit: Tensor) -> tuple[npt.NDArray[np.int64], Cosines]:
        wide = unit.double()
        cos = torch.cat([(wide @ part.double().T).float() for part in self.unit.split(_COLUMNS)], 1)
        ids = top_k(cos, self.m).sort(dim=1).values  # ascending, for the stable sort
        values, order = cos.gather(1, ids).sort(dim=1, descending=True, stable=True)
        return ids.gather(1, order).cpu().numpy(), values.cpu().numpy()


def _mth_best(row: npt.NDArray[np.int64], value: Cosines, n: int, m: int) -> npt.NDArray[np.float64]:
    """[n], each row's m-th largest value; of fewer the smallest, and 0 where there is none."""
    order = np.lexsort((-value, row))
    starts = np.searchsorted(row[order], np.arange(n))
    counts = np.bincount(row, minlength=n)
    place = np.minimum(starts + np.minimum(m, counts) - 1, len(row) - 1)
    return np.where(counts > 0, value[order][place], 0.0).astype(np.float64) if len(row) else np.zeros(n)


def _pieces(
    row: npt.NDArray[np.int64], column: npt.NDArray[np.int64], width: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    step = max(1, _EXACT // width)
    for a in range(0, max(1, len(row)), step):
        yield row[a : a + step], column[a : a + step]


# ---- on the same tokens ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Half:
    """One of the two SAEs, with what its directions say."""

    sae: SparseAutoencoder
    counterpart: npt.NDArray[np.int64]  # [n], -1 where there is none
    band: npt.NDArray[np.int64]  # [n], the first place of STITCHED at which it is added

    @staticmethod
    def of(sae: SparseAutoencoder, ids: Ids, cosines: Cosines) -> Half:
        cos = cosines[:, 0]
        counterpart = np.where(np.isnan(cos), -1, ids[:, 0].astype(np.int64))
        bounds = np.array([near for near in STITCHED if near is not None], np.float32)
        return Half(sae, counterpart, np.searchsorted(bounds, np.nan_to_num(cos, nan=-2.0), side="right"))


@dataclass
class Tally:
    """What one batch, or all, gives of one SAE."""

    fires: npt.NDArray[np.int64]  # [n] tokens
    both: npt.NDArray[np.int64]  # [n] tokens on which the best counterpart fires too
    sums: Sums  # its own reconstruction's
    stitched: list[Sums]  # with the other's latents added, for each of STITCHED
    added: npt.NDArray[np.int64]  # [len(STITCHED)] firings of the other that are added

    def __add__(self, other: Tally) -> Tally:
        stitched = [merged([vars(x), vars(y)]) for x, y in zip(self.stitched, other.stitched, strict=True)]
        sums = merged([vars(self.sums), vars(other.sums)])
        return Tally(
            self.fires + other.fires, self.both + other.both, sums, stitched, self.added + other.added
        )

    def figures(self) -> dict[str, Any]:
        """FVU, normalised MSE and L0 on the sample, alone and stitched."""
        alone = figures(self.sums)
        rows = [
            {"near": near, "fvu": figures(sums)["fvu"], "l0": _mean(int(n), self.sums.tokens)}
            for near, sums, n in zip(STITCHED, self.stitched, self.added.tolist(), strict=True)
        ]
        return {name: alone[name] for name in ("l0", "fvu", "normalised_mse")} | {"stitched": rows}


def _mean(n: int, tokens: int) -> float | None:
    return n / tokens if tokens else None


@dataclass
class Pair:
    """Two SAEs encoding the same tokens; keeps the language model and both encoders ready."""

    a: Half
    b: Half
    lm: LM
    dtype: torch.dtype
    special: set[int]
    encoders: tuple[BlockEncoder, BlockEncoder] = field(init=False)

    def __post_init__(self) -> None:
        self.encoders = BlockEncoder(self.a.sae, self.dtype), BlockEncoder(self.b.sae, self.dtype)

    def measure(self, tokens: npt.NDArray[np.uint32], report: Report = lambda done: None) -> tuple[Tally, Tally]:
        """Both SAEs on contexts [n ctx_len], special tokens left out."""
        total: tuple[Tally, Tally] | None = None
        batches = [tokens[i : i + _BATCH] for i in range(0, len(tokens), _BATCH)]
        for i, part in enumerate(lanes(self.lm.device).map(self._batch, batches)):
            total = part if total is None else (total[0] + part[0], total[1] + part[1])
            report(min(tokens.size, (i + 1) * _BATCH * tokens.shape[1]))
        if total is None:
            raise RunError("there is no text to compare them on: choose a data set that has contexts")
        return total

    def _batch(self, batch: npt.NDArray[np.uint32]) -> tuple[Tally, Tally]:
        cfg = self.a.sae.cfg
        ids = torch.from_numpy(batch.astype(np.int64)).to(self.lm.device)
        counted = torch.from_numpy(~np.isin(batch, sorted(self.special)).reshape(-1)).to(self.lm.device)
        x = self.lm.capture(ids, str(cfg.hook_name)).flatten(0, 1)[counted].float()
        out = cfg.hook_name_out
        y = x if out is None else self.lm.capture(ids, out).flatten(0, 1)[counted].float()
        fa, fb = (encoder(x) for encoder in self.encoders)
        return self._tally(self.a, fa, self.b, fb, x, y), self._tally(self.b, fb, self.a, fa, x, y)

    def _tally(self, one: Half, fires: Firings, other: Half, theirs: Firings, x: Tensor, y: Tensor) -> Tally:
        latent, n = fires.latent.cpu().numpy(), one.sae.cfg.d_sae
        hit = _together(one, fires, other, theirs)
        sums = Sums()
        sums.add_l0(fires.indptr.diff().cpu().numpy())
        recon = one.sae.decode(_sparse(fires, one.sae), x)
        sums.add_reconstruction(y, recon)
        stitched, added = _stitched(recon, other, theirs, x, y)
        return Tally(np.bincount(latent, minlength=n), np.bincount(latent[hit], minlength=n), sums, stitched, added)


def _sparse(fires: Firings, sae: SparseAutoencoder, kept: Tensor | None = None) -> SparseActs:
    rows, shape = fires.rows(), (len(fires.indptr) - 1, sae.cfg.d_sae)
    if kept is None:
        return SparseActs(rows, fires.latent, fires.act, shape)
    return SparseActs(rows[kept], fires.latent[kept], fires.act[kept], shape)


def _together(one: Half, fires: Firings, other: Half, theirs: Firings) -> npt.NDArray[np.bool_]:
    """[nnz], whether the counterpart of what fires fires on the same token."""
    width = other.sae.cfg.d_sae
    partner = one.counterpart[fires.latent.cpu().numpy()]
    wanted = fires.rows().cpu().numpy() * width + partner
    there = theirs.rows().cpu().numpy() * width + theirs.latent.cpu().numpy()  # ascending
    place = np.minimum(np.searchsorted(there, wanted), max(0, len(there) - 1))
    return (partner >= 0) & (there[place] == wanted) if len(there) else np.zeros(len(wanted), bool)


def _stitched(
    recon: Tensor, other: Half, theirs: Firings, x: Tensor, y: Tensor
) -> tuple[list[Sums], npt.NDArray[np.int64]]:
    """Errors of a reconstruction with the other's latents added, those of lower best cosine first."""
    band = torch.from_numpy(other.band).to(x.device)[theirs.latent.long()]
    nothing = other.sae.decode(_sparse(theirs, other.sae, band < 0), x)  # its bias, and what it does with x alone
    out = []
    for place in range(len(STITCHED)):
        recon = recon + (other.sae.decode(_sparse(theirs, other.sae, band == place), x) - nothing)
        sums = Sums()
        sums.add_reconstruction(y, recon)
        out.append(sums)
    return out, np.bincount(band.cpu().numpy(), minlength=len(STITCHED)).cumsum()
