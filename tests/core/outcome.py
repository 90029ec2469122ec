"""A run's results as plain Python: the one place of the exactness tests that knows in which arrays a run keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sae_backend.core import fidelity
from sae_backend.core.activations import StoredShard
from sae_backend.core.config import RunConfig
from sae_backend.core.decoder import Decoder
from sae_backend.core.language_model import LM
from sae_backend.core.results import LatentShard
from sae_backend.core.run import ContextPass, LatentPass
from sae_backend.core.sae import SparseAutoencoder

Place = tuple[int, int]  # context, position


@dataclass(frozen=True)
class Example:
    kind: int
    context: int
    peak: int
    row: dict[int, float]
    #: Activations across the context, by position.


@dataclass(frozen=True)
class Page:
    """One latent; None where a figure is undefined."""

    stats: dict[str, float | None]
    decoder: dict[str, float | None]
    dimensionality: float | None
    nearest: list[tuple[int, float]]
    opposing: list[tuple[int, float]]
    #: Latents and their cosines.
    sparks: list[int]
    strongest: list[int]
    bins: dict[int, int]
    #: Counts of the logarithmic histogram, by bin.
    intervals: list[int]
    examples: list[Example]
    margin: float | None
    misses: list[tuple[int, int, float]]
    #: Contexts, positions and margins where it came closest, if it never fired.
    together: dict[str, Any]
    #: What fires on the same tokens.

    def places(self, kind: int) -> list[Place]:
        return [(e.context, e.peak) for e in self.examples if e.kind == kind]


@dataclass(frozen=True)
class Outcome:
    pages: list[Page]
    figures: dict[str, Any]
    acts: npt.NDArray[np.float32]
    #: [contexts ctx_len d_sae] what the shards of contexts hold, in order.


@dataclass(frozen=True)
class Cut:
    """How a run is cut into work, which must change nothing."""

    batch: int = 1000
    contexts: int = 1000
    latents: int = 1000
    order: Sequence[int] | None = None
    #: Of the shards of contexts; ascending where None.


def run(
    sae: SparseAutoencoder, lm: LM, tokens: npt.NDArray[np.uint32], special: set[int], cfg: RunConfig,
    folder: Path, cut: Cut | None = None,
) -> Outcome:  # fmt: skip
    """All shards of a run, through files."""
    cut = cut or Cut()
    cfg = RunConfig(**{**asdict(cfg), "batch_contexts": cut.batch})
    context_pass = ContextPass(sae, lm, cfg, special)
    firsts = range(0, len(tokens), cut.contexts)
    paths = []
    for number in cut.order or range(len(firsts)):
        lo = firsts[number % len(firsts)]
        paths.append(folder / f"{lo}.safetensors")
        context_pass.shard(tokens[lo : lo + cut.contexts], lo, len(tokens), lambda done: None).save(paths[-1])
    paths = list(dict.fromkeys(paths))
    latent_pass = LatentPass(paths, Decoder(sae, lm.unembedding()), cfg)
    d_sae = sae.cfg.d_sae
    starts = range(0, d_sae, cut.latents)
    shards = [piece for lo in starts for piece in latent_pass.pieces(lo, min(lo + cut.latents, d_sae))]
    assert [i for shard in shards for i in range(shard.lo, shard.hi)] == list(range(d_sae))
    stored = [StoredShard(p) for p in paths]
    figures = fidelity.figures(fidelity.merged([s.sums for s in stored]))
    return Outcome([page for shard in shards for page in pages(shard)], figures, dense(stored, tokens.shape, d_sae))


def dense(shards: list[StoredShard], shape: tuple[int, ...], d_sae: int) -> npt.NDArray[np.float32]:
    """The activations [contexts ctx_len d_sae] that stored shards hold."""
    out = np.zeros((shape[0] * shape[1], d_sae), np.float32)
    for shard in shards:
        token, act = shard.rows(0, d_sae)
        latent = np.repeat(np.arange(d_sae), shard.counts(0, d_sae))
        out[token.astype(np.int64) + shard.lo * shape[1], latent] = act
    return out.reshape(*shape, d_sae)


def pages(shard: LatentShard) -> list[Page]:
    return [_page(shard, i) for i in range(shard.hi - shard.lo)]


def places(shard: LatentShard, kind: int) -> list[list[Place]]:
    """Where the examples of a kind are, of each latent."""
    chosen = ((e, e.interval == kind) for e in shard.examples)
    return [list(zip(e.context[of].tolist(), e.peak[of].tolist(), strict=True)) for e, of in chosen]


def _page(shard: LatentShard, i: int) -> Page:
    histogram, others = shard.histograms[i], shard.neighbours[i]
    decoder = {name: _defined(values[i]) for name, values in vars(shard.decoder).items()}
    stats = {name: _defined(values[i]) for name, values in vars(shard.stats).items()}
    assert shard.misses is not None and shard.cofiring is not None
    near, together = shard.misses[i], vars(shard.cofiring[i])
    return Page(
        margin=stats.pop("margin"),
        stats=stats,
        misses=list(zip(near.context.tolist(), near.peak.tolist(), near.margin.tolist(), strict=True)),
        together={name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in together.items()},
        dimensionality=decoder.pop("dimensionality"),
        decoder=decoder,
        nearest=list(zip(others.nearest.tolist(), others.nearest_cos.tolist(), strict=True)),
        opposing=list(zip(others.opposing.tolist(), others.opposing_cos.tolist(), strict=True)),
        sparks=shard.sparks[i].tolist(),
        strongest=list(shard.strongest[i]),
        bins={histogram.first_bin + j: n for j, n in enumerate(histogram.counts.tolist()) if n},
        intervals=histogram.intervals.tolist(),
        examples=_examples(shard, i),
    )


def _examples(shard: LatentShard, i: int) -> list[Example]:
    e = shard.examples[i]
    ends = zip(e.offsets[:-1].tolist(), e.offsets[1:].tolist(), strict=True)
    rows = [dict(zip(e.position[a:b].tolist(), e.act[a:b].tolist(), strict=True)) for a, b in ends]
    found = zip(e.interval.tolist(), e.context.tolist(), e.peak.tolist(), rows, strict=True)
    return [Example(kind, context, peak, row) for kind, context, peak, row in found]


def _defined(value: Any) -> float | None:
    return None if np.isnan(value) else value.item()
