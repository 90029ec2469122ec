"""SAEs whose runs went through the store as a worker's do: latents dead, rare, alive and dense."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.utils import timezone

from sae_backend import claims, packing, runs, store
from sae_backend.core.contexts import Contexts
from sae_backend.core.results import (
    DecoderStats,
    ExamplesByLatent,
    HistogramsByLatent,
    LatentShard,
    LatentStats,
    LogitsByLatent,
    NeighboursByLatent,
    TokensByLatent,
    status_of,
)
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae
from sae_backend.packing import Examples, Histogram, Logits, Neighbours

D_SAE, N_TOKENS, CTX_LEN = 300, 1_000_000, 16
DEAD, RARE, DENSE = 20, 15, 5  # latents 0 … 19, 20 … 34 and 35 … 39
WORDS = [b"<|endoftext|>", b" moon", b" sun", b"<script>", b" star", b"\xf0\x9f", b" tide"]
FIGURES: dict[str, Any] = {
    "tokens": N_TOKENS, "contexts": 4, "l0": 8.2, "mse": 12.5, "fvu": 0.142, "normalised_mse": 0.151,
    "ce": {"clean": 3.316, "spliced": 3.482, "zero": 9.1, "recovered": 0.979, "tokens": 4000},
    "features_per_dimension": 31.1, "live_per_dimension": 17.5, "dtype": "float32", "device": "cpu",
    "seconds": {"contexts": 61.0, "latents": 4.0},
}  # fmt: skip


@dataclass(frozen=True)
class Stats:
    """What was stored, for tests to compare with."""

    sae: Sae
    run: Run
    values: dict[str, np.ndarray[Any, Any]]


def language_model(name: str = "gpt2-small") -> LanguageModel:
    found, _ = LanguageModel.objects.get_or_create(
        name=name,
        defaults={
            "source": "tests", "sha256": _hash(name), "architecture": "GPT2LMHeadModel", "d_model": 16,
            "n_layers": 2, "n_ctx": CTX_LEN, "d_vocab": len(WORDS),
            "vocabulary": packing.pack_vocabulary(WORDS, [i == 0 for i in range(len(WORDS))]),
        },
    )  # fmt: skip
    return found


def dataset(lm: LanguageModel) -> Dataset:
    """Four contexts of four documents."""
    found, made = Dataset.objects.get_or_create(name="moonlight", lm=lm, ctx_len=CTX_LEN, defaults={"source": "tests"})
    if made:
        tokens = np.arange(4 * CTX_LEN, dtype=np.uint32).reshape(4, CTX_LEN) % len(WORDS)
        names, texts = [f"document {i}" for i in range(4)], ["text"] * 4
        block = Contexts(tokens, np.arange(4, dtype=np.int32), np.zeros(4, np.int32), names)
        store.write_contexts(found, [(block, texts)])
        found.refresh_from_db()
    return found


def new_sae(name: str = "topk8-300", **fields: Any) -> Sae:
    given = {
        "sha256": _hash(name), "slug": fields.pop("slug", "topk8-300"), "name": name, "lm": language_model(),
        "hook_name": "blocks.1.hook_resid_post", "architecture": "topk", "format": "saelens", "d_in": 16,
        "d_out": 16, "d_sae": D_SAE, "k": 8, "path": "nowhere",
    }  # fmt: skip
    return Sae.objects.create(**(given | fields))


def new_run(sae: Sae) -> Run:
    """A queued run."""
    return runs.create(sae, dataset(sae.lm), {"shard_contexts": 2, "shard_latents": 128})


def start(run: Run) -> None:
    """As the first worker does when it begins."""
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING, started_at=timezone.now())


def do_contexts(run: Run, shards: int | None = None) -> None:
    """Finish some or all shards of contexts."""
    left = run.shards.filter(kind=RunShard.Kind.CONTEXTS).exclude(state=RunShard.State.DONE)
    for shard in left.order_by("index")[:shards]:
        claimed = claims.claim(run.pk, shard.kind, shard.index, "worker-1")
        assert claimed is not None
        claims.finish_contexts(claimed, checksum=0)
    if shards is None:
        runs.advance(run.pk, RunShard.Kind.CONTEXTS, Run.State.LOADING)


def load(run: Run, values: dict[str, np.ndarray[Any, Any]]) -> None:
    """COPY every shard of latents."""
    for shard in run.shards.filter(kind=RunShard.Kind.LATENTS).order_by("index"):
        claimed = claims.claim(run.pk, shard.kind, shard.index, "worker-1")
        assert claimed is not None
        store.load_latents(claimed, [_shard(values, shard.lo, shard.hi)])
    runs.advance(run.pk, RunShard.Kind.LATENTS, Run.State.SEALED)


def publish(sae: Sae | None = None, figures: dict[str, Any] | None = None, seed: int = 0) -> Stats:
    """An SAE with a live run, all the way through the store; needs a test without a transaction around it."""
    sae = sae or new_sae()
    run, values = new_run(sae), statistics(sae.d_sae, seed)
    start(run)
    do_contexts(run)
    load(run, values)
    store.seal(run.pk)
    store.publish(run.pk, FIGURES if figures is None else figures)
    run.refresh_from_db()
    sae.refresh_from_db()
    return Stats(sae, run, values)


def statistics(n: int, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Every column of n latents; many share a value, for ties are where paging goes wrong."""
    rng = np.random.default_rng(seed)
    firings = np.round(N_TOKENS * 10.0 ** rng.normal(-3.3, 0.6, n)).clip(20, 90_000).astype(np.int64)
    firings[:DEAD], firings[DEAD : DEAD + RARE] = 0, rng.integers(1, 9, RARE)
    firings[DEAD + RARE : DEAD + RARE + DENSE] = 200_000
    fires, few = firings > 0, firings < 4
    out: dict[str, np.ndarray[Any, Any]] = {
        "firings": firings, "density": firings / N_TOKENS, "status": status_of(firings, N_TOKENS)
    }  # fmt: skip
    for name in ("max_act", "mean_act"):
        out[name] = np.where(fires, np.round(rng.gamma(4, 6, n), 0), np.nan)
    for name in ("std_act", "skewness", "kurtosis", "kurtosis_all", "kurtosis_zero"):
        out[name] = np.where(few, np.nan, 1.5 + rng.gamma(1, 4, n))
    out["margin"] = np.where(fires, rng.gamma(2, 1, n), -rng.gamma(2, 1, n))
    out["threshold"], out["since_fired"] = np.full((2, n), np.nan)
    out["nearest_live"] = np.where(np.arange(n) == D_SAE - 1, -1, np.maximum(np.arange(n), DEAD) + 1)
    for name in ("encoder_decoder_cos", "nearest_cos", "nearest_live_cos"):
        out[name] = rng.uniform(0.1, 0.99, n)
    opposing = -rng.uniform(0.1, 0.99, n)
    out["opposing_cos"] = np.minimum(opposing, opposing[::-1])  # both of a pair have its cosine
    for name in ("decoder_norm", "dimensionality", "logit_std", "logit_kurtosis"):
        out[name] = rng.gamma(3, 0.2, n)
    out["b_enc"], out["logit_skewness"] = rng.normal(0, 1, n), rng.normal(0, 1e-4, n)
    return out


def _shard(values: dict[str, np.ndarray[Any, Any]], lo: int, hi: int) -> LatentShard:
    part = {name: column[lo:hi] for name, column in values.items()}
    stats = LatentStats(**{f: part[f] for f in LatentStats.__dataclass_fields__})
    decoder = DecoderStats(**{f: part[f] for f in DecoderStats.__dataclass_fields__})
    n = hi - lo
    fires = part["firings"] > 0
    return LatentShard(
        lo, hi, stats, decoder, TokensByLatent.of([[1, 3, 5] if on else [] for on in fires]),
        np.tile(np.arange(18, 0, -1, dtype=np.uint8), (n, 1)),
        ExamplesByLatent.of([_EXAMPLES] * n), HistogramsByLatent.of([_HISTOGRAM] * n),
        LogitsByLatent.of([_LOGITS] * n),
        NeighboursByLatent.of([_neighbours(i, len(values["firings"])) for i in range(lo, hi)]),
    )  # fmt: skip


_EXAMPLES = Examples(
    np.array([0], np.uint8), np.array([0], np.uint32), np.array([1], np.uint16), np.array([0, 1], np.int64),
    np.array([1], np.uint16), np.array([5.0], np.float32),
)  # fmt: skip
_HISTOGRAM = Histogram(140, np.array([3, 2], np.uint32), np.array([0, 0, 0, 0, 0, 0, 0, 0, 0, 5], np.uint32))
_LOGITS = Logits(
    np.array([4], np.uint32), np.array([0.5], np.float32),
    np.array([2], np.uint32), np.array([-0.5], np.float32),
    -1.0, 1.0, np.array([1, 2, 1], np.uint32),
)  # fmt: skip


def _neighbours(index: int, n: int) -> Neighbours:
    """Latent i opposes n − 1 − i, so that every pair could be listed twice."""
    nearest, opposing = np.array([(index + 1) % n], np.uint32), np.array([n - 1 - index], np.uint32)
    return Neighbours(nearest, np.array([0.5], np.float32), opposing, np.array([-0.5], np.float32))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
