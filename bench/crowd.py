"""python -m bench.crowd: pages of an SAE of 1,048,576 latents, published without being computed.

Its rows are those of the demo's 4,096 latents over and over, each statistic up to a tenth larger or smaller, so that no
two rows of a table are alike. They are loaded, indexed and published as a worker does it; there is no checkpoint.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import pages, pipeline
from bench.report import Clock, line
from bench.site import site

LATENTS = int(os.environ.get("BENCH_LATENTS", 1 << 20))
TOKENS = 65_536


def main() -> None:
    with site():
        clock = Clock()
        with clock():
            run = published(LATENTS)
        line("crowd_published", clock.wall, f"s, {LATENTS:,} latents loaded, indexed and published")
        pages.measure(run, "crowd_")


def published(n: int) -> Any:
    """A live run of n latents, a multiple of 4,096."""
    from demo import ROOT
    from demo.corpus import documents
    from sae_backend import store
    from sae_backend.models import Run
    from sae_backend.registry import register_dataset, register_lm

    lm = register_lm("bench", str(ROOT / "model"))
    dataset = register_dataset("standard library", "bench", lm, documents(), 256, TOKENS)
    small, pieces = demo_rows(lm, dataset)
    run = _run(small, n)
    _load(run, pieces)
    Run.objects.filter(pk=run.pk).update(state=Run.State.SEALED)
    store.seal(run.pk)
    store.publish(run.pk, {"tokens": TOKENS, "l0": 32.0, "dtype": "bfloat16"})
    run.refresh_from_db()
    return run


def demo_rows(lm: Any, dataset: Any) -> tuple[Any, list[Any]]:
    """A run of the demo's SAE, and the pieces of its latents."""
    from sae_backend import jobs, kept, runs
    from sae_backend.models import Run

    run = runs.create(pipeline.imported(pipeline.checkpoint(Path(), 4096), lm), dataset, jobs.run_config())
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING)
    for shard in run.shards.filter(kind="contexts").order_by("index"):
        jobs.compute_contexts(run.pk, shard.index)
    run.refresh_from_db()
    return run, list(kept.latent_pass(run.pk, run.computed_at).pieces(0, run.sae.d_sae))


def _run(small: Any, n: int) -> Any:
    """A run of an SAE that is the small one but for its width, all its contexts done."""
    from sae_backend import runs
    from sae_backend.models import Run, RunShard, Sae

    sae = Sae.objects.get(pk=small.sae_id)
    sae.pk, sae.slug, sae.name, sae.d_sae, sae.current_run = None, f"crowd-{n}", f"TopK 32, {n:,}", n, None
    sae.sha256 = hashlib.sha256(sae.slug.encode()).hexdigest()
    sae.save(force_insert=True)
    run = runs.create(sae, small.dataset, small.config)
    run.shards.filter(kind="contexts").update(state=RunShard.State.DONE)
    Run.objects.filter(pk=run.pk).update(state=Run.State.LOADING, started_at=run.created_at, computed_at=run.created_at)
    return run


def _load(run: Any, pieces: list[Any]) -> None:
    from sae_backend import claims, store

    rng = np.random.default_rng(0)
    for shard in run.shards.filter(kind="latents").order_by("index"):
        claimed = claims.claim(run.pk, shard.kind, shard.index, "bench")
        assert claimed is not None
        assert store.load_latents(claimed, (_varied(p, rng) for p in moved(pieces, shard)))


def moved(pieces: list[Any], shard: Any) -> Iterator[Any]:
    """The same rows under the indexes of another shard."""
    width = pieces[-1].hi
    for lo in range(shard.lo - shard.lo % width, shard.hi, width):
        for piece in pieces:
            if shard.lo <= piece.lo + lo and piece.hi + lo <= shard.hi:
                near = piece.neighbours
                near = replace(near, nearest=near.nearest + lo, opposing=near.opposing + lo)
                live = piece.decoder.nearest_live
                decoder = replace(piece.decoder, nearest_live=np.where(live < 0, live, live + lo))
                yield replace(piece, lo=piece.lo + lo, hi=piece.hi + lo, neighbours=near, decoder=decoder)


def _varied(piece: Any, rng: np.random.Generator) -> Any:
    def spread(record: Any) -> Any:
        columns = {f.name: getattr(record, f.name) for f in fields(record)}
        floats = {name: x for name, x in columns.items() if np.issubdtype(x.dtype, np.floating)}
        return replace(record, **{name: x * rng.uniform(0.9, 1.1, len(x)) for name, x in floats.items()})

    return replace(piece, stats=spread(piece.stats), decoder=spread(piece.decoder))


if __name__ == "__main__":
    main()
