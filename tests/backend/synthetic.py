"""Runs without an SAE: rows that follow from a latent's index alone, so that any cut into shards gives the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import numpy as np
import psycopg
from django.db import connection, connections

from sae_backend import claims, locks, packing, runs, store
from sae_backend.core.contexts import Contexts
from sae_backend.core.results import (
    CofiringByLatent,
    DecoderStats,
    ExamplesByLatent,
    HistogramsByLatent,
    LatentShard,
    LatentStats,
    LogitsByLatent,
    MissesByLatent,
    NeighboursByLatent,
    TokensByLatent,
    status_of,
)
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae
from sae_backend.packing import Examples, Histogram, Logits, Neighbours

D_SAE, SIZE, N_TOKENS = 2048, 128, 1_000_000
A = TypeVar("A")
CONTEXTS, LATENTS = RunShard.Kind.CONTEXTS, RunShard.Kind.LATENTS


@contextmanager
def slow_connection(seconds: float = 0.001, piece: int = 512) -> Iterator[None]:
    """What a COPY writes leaves in small pieces, each after a while, so that it can be met in the middle."""
    write = psycopg.Copy.write

    def slowly(copy: Any, buffer: Any) -> None:
        for a in range(0, len(buffer), piece):
            time.sleep(seconds)
            write(copy, buffer[a : a + piece])

    psycopg.Copy.write = slowly  # type: ignore[method-assign]
    try:
        yield
    finally:
        psycopg.Copy.write = write  # type: ignore[method-assign]


def statistics(index: np.ndarray) -> LatentStats:
    """Every seventh latent is dead, and what is undefined is NaN."""
    firings = np.where(index % 7 == 0, 0, (index * 7919) % 150_000 + 1).astype(np.int64)
    values = {
        name: np.where(firings > 0, 1.0 + (index * prime % 1009) / 7.0, np.nan) for name, prime in _PRIMES.items()
    }
    values["margin"] = (index % 11 - 5) / 4.0
    values["kurtosis"] = np.where(firings > 3, values["kurtosis"], np.nan)
    return LatentStats(firings, firings / N_TOKENS, status_of(firings, N_TOKENS), **values)


_PRIMES = {
    "max_act": 13, "mean_act": 17, "std_act": 19, "skewness": 23, "kurtosis": 29, "kurtosis_all": 31,
    "kurtosis_zero": 37,
}  # fmt: skip
_FACTS = (
    "decoder_norm", "b_enc", "encoder_decoder_cos", "nearest_cos", "opposing_cos", "dimensionality", "threshold",
    "since_fired",
)  # fmt: skip
_LOGIT_FACTS = ("logit_std", "logit_skewness", "logit_kurtosis")


def decoder_facts(index: np.ndarray) -> DecoderStats:
    facts = {name: np.sin(index * (i + 1.0)) for i, name in enumerate(_FACTS)}
    live = {"nearest_live": index + 1, "nearest_live_cos": np.cos(index)}
    return DecoderStats(**facts, **live, **{name: np.full(len(index), np.nan) for name in _LOGIT_FACTS})


def shard(lo: int, hi: int) -> LatentShard:
    index = np.arange(lo, hi)
    stats = statistics(index)
    examples = [_examples(int(i), int(n)) for i, n in zip(index, stats.firings, strict=True)]
    return LatentShard(
        lo=lo, hi=hi, stats=stats, decoder=decoder_facts(index),
        strongest=TokensByLatent.of([[int(i) % 50, 3] for i in index]),
        sparks=np.tile(index[:, None] % 256, 18).astype(np.uint8), examples=ExamplesByLatent.of(examples),
        histograms=HistogramsByLatent.of(
            [Histogram(5, np.array([i, 2], np.uint32), np.arange(10, dtype=np.uint32)) for i in index]
        ),
        logits=LogitsByLatent.of([_logits(int(i)) for i in index]),
        neighbours=NeighboursByLatent.of([_neighbours(int(i)) for i in index]),
        misses=_misses(index, stats.firings == 0), cofiring=_cofiring(index),
    )  # fmt: skip


def _misses(index: np.ndarray, dead: np.ndarray) -> MissesByLatent:
    margin = np.where(dead[:, None], -0.25 * np.arange(1, 4), np.nan).astype(np.float32)
    context = (index[:, None] % 5 + np.arange(3)).astype(np.uint32)
    return MissesByLatent(context, context.astype(np.uint16), margin)


def _cofiring(index: np.ndarray) -> CofiringByLatent:
    n = len(index)
    latent = np.stack([index + 1, index + 2, np.full(n, -1)], 1)
    both = np.tile(np.array([3, 2, 0], np.uint32), (n, 1))
    beside = [np.tile(np.arange(4), (n, 1)) for _ in range(4)]
    return CofiringByLatent(1000, np.full(n, 7, np.uint32), latent, both, both + 1, *beside)


def _examples(index: int, firings: int) -> Examples:
    n = min(firings, 3)
    act = np.linspace(3.0, 1.0, n, dtype=np.float32) * (1 + index % 5)
    peak = (np.arange(n) + index) % 8
    interval = np.zeros(n, np.uint8)
    return Examples(
        interval, np.arange(n, dtype=np.uint32), peak.astype(np.uint16), np.arange(n + 1), peak.astype(np.uint16), act
    )


def _logits(index: int) -> Logits:
    ids, effects = np.arange(4, dtype=np.uint32) + index % 40, np.linspace(1, 0.5, 4, dtype=np.float32)
    return Logits(ids, effects, ids, -effects, -1.0, 1.0, np.ones(8, np.uint32))


def _neighbours(index: int) -> Neighbours:
    ids, cos = np.arange(4, dtype=np.uint32) + index, np.linspace(0.9, 0.1, 4, dtype=np.float32)
    return Neighbours(ids, cos, ids, -cos)


def a_dataset(d_vocab: int = 50, n: int = 24, ctx_len: int = 8) -> Dataset:
    """A language model of d_vocab tokens and n contexts of its tokens."""
    words = [f" w{i}".encode() for i in range(d_vocab)]
    number = LanguageModel.objects.count()
    lm = LanguageModel.objects.create(
        name=f"lm {number}", source="nowhere", sha256=f"{number:064x}", architecture="GPT2", d_model=16, n_layers=2,
        n_ctx=ctx_len, d_vocab=d_vocab, vocabulary=packing.pack_vocabulary(words, [False] * d_vocab),
    )  # fmt: skip
    dataset = Dataset.objects.create(name="words", source="tests", lm=lm, ctx_len=ctx_len)
    write_contexts(dataset, tokens_of(dataset, n))
    dataset.refresh_from_db()
    return dataset


def tokens_of(dataset: Dataset, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, dataset.lm.d_vocab, (n, dataset.ctx_len), np.uint32)


def write_contexts(dataset: Dataset, tokens: np.ndarray, texts: Any = None) -> None:
    n = len(tokens)
    texts = texts or [f"text {i}" for i in range(n)]
    block = Contexts(tokens, np.zeros(n, np.int32), np.arange(n, dtype=np.int32), ["one"])
    store.write_contexts(dataset, [(block, texts)])


def a_sae(dataset: Dataset, d_sae: int = D_SAE) -> Sae:
    number = Sae.objects.count()
    return Sae.objects.create(
        sha256=f"5ae{number:061x}", slug=f"sae-{number}", name=f"sae {number}", lm=dataset.lm, format="saelens",
        hook_name="blocks.0.hook_resid_post", architecture="topk", d_in=16, d_out=16, d_sae=d_sae, k=4, path="x",
    )  # fmt: skip


def a_run(sae: Sae, dataset: Dataset, state: str = Run.State.LOADING) -> Run:
    """A run whose contexts are done, unless an earlier state is asked for."""
    run = runs.create(sae, dataset, {"shard_contexts": 8, "shard_latents": SIZE})
    if state == Run.State.LOADING:
        run.shards.filter(kind=CONTEXTS).update(state=RunShard.State.DONE)
    Run.objects.filter(pk=run.pk).update(state=state)
    run.refresh_from_db()
    return run


def load_shard(run_id: int, index: int, worker: str, slow: bool = False) -> bool:
    claimed = claims.claim(run_id, LATENTS, index, worker)
    with slow_connection() if slow else nullcontext():
        return claimed is not None and store.load_latents(claimed, [shard(claimed.lo, claimed.hi)])


def load(run: Run, worker: str = "loader", slow: bool = False) -> None:
    """Whatever is open, in order, until nothing is."""
    for index in range(run.shards.filter(kind=LATENTS).count()):
        load_shard(run.pk, index, worker, slow)


def load_and_seal(run: Run) -> None:
    load(run)
    assert runs.advance(run.pk, LATENTS, Run.State.SEALED)
    store.seal(run.pk)


def publish_alone(run_id: int) -> bool:
    """Seal and publish as a worker does; False while another is at it, or its connection still is."""
    with locks.alone("publish", run_id) as mine:
        if mine:
            store.seal(run_id)
            store.publish(run_id, {})
    return mine


def published(sae: Sae, dataset: Dataset) -> Run:
    run = a_run(sae, dataset)
    load_and_seal(run)
    store.publish(run.pk, {})
    run.refresh_from_db()
    return run


def query(text: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(text, list(values) or None)
        return cursor.fetchall()


def count(table: str) -> int:
    return int(query(f"select count(*) from {table}")[0][0])


def tables(run: Run) -> list[str]:
    """The run's tables that exist, attached or not."""
    names = [f"latent_r{run.pk}", f"latent_page_r{run.pk}"]
    return [str(row[0]) for row in query("select relname from pg_class where relname = any(%s) order by 1", names)]


def digest(run: Run) -> list[str]:
    """Of every row of both tables, without the run's number."""
    each = "md5(string_agg(md5((to_jsonb(t) - 'run_id')::text), '' order by index))"
    return [
        str(query(f"select {each} from {table} t")[0][0]) for table in (f"latent_r{run.pk}", f"latent_page_r{run.pk}")
    ]


def apart(work: Callable[[], A]) -> A:
    """In a thread, which has connections of its own."""
    try:
        return work()
    finally:
        connections.close_all()


@contextmanager
def waiting_at_most(seconds: float, on: Any = connection) -> Iterator[None]:
    """End what a connection waits for longer; it goes back to its pool as it came."""
    with on.cursor() as cursor:
        cursor.execute(f"set statement_timeout = '{seconds:.0f}s'")
    try:
        yield
    finally:
        with on.cursor() as cursor:
            cursor.execute("reset statement_timeout")


@contextmanager
def unindexed(run: Run) -> Iterator[None]:
    """Keep a run from being published meanwhile: an index waits for whoever writes."""
    other = connection.copy()
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute(f"lock table latent_r{run.pk} in row exclusive mode")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def indexing(run: Run) -> bool:
    waits = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like %s"
    return bool(query(waits, f"create unique index %latent_r{run.pk}_pk%"))
