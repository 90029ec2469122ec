"""What a run hands to storage: torch-free records of arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from sae_backend.core.ragged import ends
from sae_backend.packing import N_BINS, Examples, Histogram, Logits, Misses, Neighbours, Together

Record = TypeVar("Record", covariant=True)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.uint32]
Effects = npt.NDArray[np.float32]
DEAD, RARE, ALIVE, DENSE = range(4)
RARE_DENSITY, RARE_FIRINGS, DENSE_DENSITY = 1e-5, 10, 0.1


@dataclass(frozen=True)
class LatentStats:
    """Statistics of n latents, float64; NaN where undefined (NULL in the database)."""

    firings: npt.NDArray[np.int64]
    #: Counted tokens with activation > 0.
    density: Floats
    #: firings / N
    status: npt.NDArray[np.int16]
    #: DEAD, RARE, ALIVE or DENSE.
    max_act: Floats
    mean_act: Floats
    std_act: Floats
    skewness: Floats
    kurtosis: Floats
    #: m4/m2² over firing tokens (Pearson: 3 for a Gaussian); undefined below 4 firings or at variance 0.
    kurtosis_all: Floats
    #: The same over all N tokens, zeros included.
    kurtosis_zero: Floats
    #: E[a⁴]/E[a²]² over all tokens.
    margin: Floats
    #: The largest of pre-activation − what it had to exceed, over sampled tokens (core/margins.py).


@dataclass(frozen=True)
class DecoderStats:
    """What the weights alone say of n latents; NaN where undefined."""

    decoder_norm: Floats
    b_enc: Floats
    encoder_decoder_cos: Floats
    nearest_cos: Floats
    nearest_live: npt.NDArray[np.int64]
    #: Of the latents that fired, the one whose decoder row is nearest; -1 where there is none.
    nearest_live_cos: Floats
    opposing_cos: Floats
    dimensionality: Floats
    #: D_i over live latents and itself.
    threshold: Floats
    #: The activation from which it fires; NaN where nothing but 0 or the other latents decide.
    since_fired: Floats
    #: Steps of training since it fired, as the checkpoint has it; NaN where it does not say.
    logit_std: Floats
    logit_skewness: Floats
    logit_kurtosis: Floats


class ByLatent(Sequence[Record]):
    """Arrays of n latents that read like a list of records: made, packed and stored whole, looked at one by one."""

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        places = range(len(self))[i]
        return self._record(places) if isinstance(places, int) else [self._record(j) for j in places]

    @abstractmethod
    def _record(self, i: int) -> Record: ...


def _padded(rows: Sequence[Any], dtype: Any, fill: float = 0) -> npt.NDArray[Any]:
    """Rows of different lengths as one array, filled up."""
    out = np.full((len(rows), max(map(len, rows), default=0)), fill, dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


@dataclass(frozen=True)
class TokensByLatent(ByLatent[list[int]]):
    ids: Ints
    #: [n m] token ids; -1 behind the last where there are fewer than m.

    @classmethod
    def of(cls, lists: Sequence[Sequence[int]]) -> Self:
        return cls(_padded(lists, np.int64, -1))

    def __len__(self) -> int:
        return len(self.ids)

    def _record(self, i: int) -> list[int]:
        return self.ids[i][self.ids[i] >= 0].tolist()


@dataclass(frozen=True)
class ExamplesByLatent(ByLatent[Examples]):
    """Examples of all latents end to end; the fields are those of `Examples`."""

    starts: Ints
    #: [n + 1] into interval, context and peak.
    interval: npt.NDArray[np.uint8]
    context: Counts
    peak: npt.NDArray[np.uint16]
    offsets: Ints
    position: npt.NDArray[np.uint16]
    act: Effects

    @classmethod
    def of(cls, records: Sequence[Examples]) -> Self:
        def all_of(name: str) -> npt.NDArray[Any]:
            return np.concatenate([getattr(e, name) for e in records])

        starts, counts = ends([len(e.interval) for e in records]), [np.diff(e.offsets) for e in records]
        head = all_of("interval"), all_of("context"), all_of("peak")
        return cls(starts, *head, ends(np.concatenate(counts)), all_of("position"), all_of("act"))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def _record(self, i: int) -> Examples:
        a, b = int(self.starts[i]), int(self.starts[i + 1])
        offsets = self.offsets[a : b + 1]
        own, firings = slice(a, b), slice(int(offsets[0]), int(offsets[-1]))
        head = self.interval[own], self.context[own], self.peak[own]
        return Examples(*head, offsets - offsets[0], self.position[firings], self.act[firings])


@dataclass(frozen=True)
class HistogramsByLatent(ByLatent[Histogram]):
    bins: Counts
    #: [n N_BINS]; a record has them from the first that counts anything to the last.
    intervals: Counts
    #: [n N_INTERVALS]

    @classmethod
    def of(cls, records: Sequence[Histogram]) -> Self:
        bins = np.zeros((len(records), N_BINS), np.uint32)
        for row, h in zip(bins, records, strict=True):
            row[h.first_bin : h.first_bin + len(h.counts)] = h.counts
        return cls(bins, np.stack([h.intervals for h in records]))

    def __len__(self) -> int:
        return len(self.bins)

    def _record(self, i: int) -> Histogram:
        used = np.flatnonzero(self.bins[i])
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        return Histogram(first, self.bins[i, first:end], self.intervals[i])


@dataclass(frozen=True)
class LogitsByLatent(ByLatent[Logits]):
    """Direct effects on the logits; the fields are those of `Logits`."""

    defined: npt.NDArray[np.bool_]
    #: [n] whether the latent has any; a record without has none.
    promoted: Counts
    promoted_effect: Effects
    suppressed: Counts
    suppressed_effect: Effects
    low: Effects
    high: Effects
    counts: Counts
    #: [n bins]; the four before low are [n m].

    @classmethod
    def of(cls, records: Sequence[Logits]) -> Self:
        def all_of(name: str, dtype: Any) -> npt.NDArray[Any]:
            return _padded([getattr(x, name) for x in records], dtype)

        up = all_of("promoted", np.uint32), all_of("promoted_effect", np.float32)
        down = all_of("suppressed", np.uint32), all_of("suppressed_effect", np.float32)
        low, high = (np.array(x, np.float32) for x in zip(*((x.low, x.high) for x in records), strict=True))
        return cls(np.array([len(x.counts) > 0 for x in records]), *up, *down, low, high, all_of("counts", np.uint32))

    def __len__(self) -> int:
        return len(self.defined)

    def _record(self, i: int) -> Logits:
        own = (i, slice(None if self.defined[i] else 0))
        low, high = (float(x[i]) if self.defined[i] else 0.0 for x in (self.low, self.high))
        up, down = (self.promoted[own], self.promoted_effect[own]), (self.suppressed[own], self.suppressed_effect[own])
        return Logits(*up, *down, low, high, self.counts[own])


@dataclass(frozen=True)
class NeighboursByLatent(ByLatent[Neighbours]):
    """Decoder cosines; the fields are those of `Neighbours`, all [n m]."""

    nearest: Counts
    nearest_cos: Effects
    #: Not finite where there is no such neighbour; a record leaves it out.
    opposing: Counts
    opposing_cos: Effects

    @classmethod
    def of(cls, records: Sequence[Neighbours]) -> Self:
        near = _padded([x.nearest for x in records], np.uint32)
        near_cos = _padded([x.nearest_cos for x in records], np.float32, np.nan)
        far = _padded([x.opposing for x in records], np.uint32)
        return cls(near, near_cos, far, _padded([x.opposing_cos for x in records], np.float32, np.nan))

    def __len__(self) -> int:
        return len(self.nearest)

    def _record(self, i: int) -> Neighbours:
        near, far = np.isfinite(self.nearest_cos[i]), np.isfinite(self.opposing_cos[i])
        nearest, opposing = self.nearest[i][near], self.opposing[i][far]
        return Neighbours(nearest, self.nearest_cos[i][near], opposing, self.opposing_cos[i][far])


@dataclass(frozen=True)
class MissesByLatent(ByLatent[Misses]):
    """Where latents that never fired came closest to it; the fields are those of `Misses`, all [n m]."""

    context: Counts
    peak: npt.NDArray[np.uint16]
    margin: Effects
    #: NaN where there is none; a record leaves it out.

    def __len__(self) -> int:
        return len(self.context)

    def _record(self, i: int) -> Misses:
        there = np.isfinite(self.margin[i])
        return Misses(self.context[i][there], self.peak[i][there], self.margin[i][there])


@dataclass(frozen=True)
class CofiringByLatent(ByLatent[Together]):
    """What fires on the same tokens; the fields are those of `Together`."""

    tokens: int
    own: Counts
    #: [n]
    latent: Ints
    #: [n m], -1 behind the last where there are fewer than m.
    both: Counts
    firings: Counts
    #: [n m]
    nearest: Ints
    nearest_firings: Ints
    opposing: Ints
    opposing_firings: Ints
    #: [n m'] of the decoder's neighbours, -1 where there is no such neighbour.

    def __len__(self) -> int:
        return len(self.own)

    def _record(self, i: int) -> Together:
        lists: list[npt.NDArray[Any]] = [self.latent, self.both, self.firings]
        some = [self.latent[i] >= 0] * len(lists)
        lists += [self.nearest, self.nearest_firings, self.opposing, self.opposing_firings]
        some += [x[i] >= 0 for x in lists[3:]]
        there = (x[i][which].astype(np.uint32) for x, which in zip(lists, some, strict=True))
        return Together(self.tokens, int(self.own[i]), *there)


@dataclass(frozen=True)
class LatentShard:
    """Everything about latents lo ≤ i < hi that a run stores."""

    lo: int
    hi: int
    stats: LatentStats
    decoder: DecoderStats
    strongest: TokensByLatent
    #: Up to 3 distinct peak tokens of the top contexts of each latent.
    sparks: npt.NDArray[np.uint8]
    #: [n 18] shape of the activation histogram over (0, max].
    examples: ExamplesByLatent
    histograms: HistogramsByLatent
    logits: LogitsByLatent
    neighbours: NeighboursByLatent
    misses: MissesByLatent | None = None
    cofiring: CofiringByLatent | None = None
    #: None where the contexts were encoded before there were samples.
    enrichment: Effects | None = None
    #: [n n_sets] z of the logit effects on each of a run's token sets; None without an unembedding.


def status_of(firings: npt.NDArray[np.int64], n_tokens: int) -> npt.NDArray[np.int16]:
    """Dead, rare, alive or dense, by the definitions in docs/statistics.md."""
    density = firings / max(n_tokens, 1)
    status = np.full(len(firings), ALIVE, np.int16)
    status[density > DENSE_DENSITY] = DENSE
    status[(density < RARE_DENSITY) | (firings < RARE_FIRINGS)] = RARE
    status[firings == 0] = DEAD
    return status
