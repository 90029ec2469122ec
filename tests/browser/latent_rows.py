"""A small published SAE, its rows packed as a worker packs them: latents of every kind over readable text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from django.db import connection

from sae_backend import packing
from sae_backend.models import Dataset, LanguageModel, Run, Sae
from sae_backend.packing import (
    N_BINS,
    N_INTERVALS,
    RANDOM,
    TOP,
    Examples,
    Histogram,
    Logits,
    Misses,
    Neighbours,
    Together,
)
from tests import packers

ALIVE, DEAD, RARE, PLAIN = 0, 1, 2, 3  # indices with a story; the others resemble ALIVE
D_SAE, CTX_LEN, N_TOKENS = 24, 128, 1_000_000
SEPARATOR = "<|endoftext|>"
TEXTS = [
    "Soviet photographs had shown that, unlike the near side, the far side of the Moon has few maria.",
    "“I never could sleep when the moon was full,” said the old keeper, “and I shall not begin.”",
    'from time import time\n\n\ndef moon_phase(when: date) -> float:\n\t"""Age of the moon in days."""',
    "clear skies so we drove out past the reservoir 🌙 and honestly the moon looked close enough to touch",
    "في كل شهر يدور القمر حول الأرض مرة تقريبا، ويظهر لها الوجه نفسه دائما moon والنجوم في السماء بعيدة جدا",
    "昨夜はとても晴れて、月がきれいでした。The moon was out. <script>alert('moon & stars')</script>",
    "FOR IMMEDIATE RELEASE\n" + "=" * 64 + "\nCrew returns safely from ten days in moon orbit",
    "Write the tidal acceleration due to the moon as $a = 2 G m r / d^3$; it is twice the\u200b acceleration",
]


@dataclass
class Words:
    """A vocabulary that grows: words with their space, and the parts of longer characters."""

    tokens: list[bytes] = field(default_factory=lambda: [SEPARATOR.encode()])
    ids: dict[bytes, int] = field(default_factory=lambda: {SEPARATOR.encode(): 0})

    def encode(self, text: str) -> list[int]:
        return [
            self._id(part) for piece in re.findall(r" ?\w+|\s|=+| ?[^\w\s]", text) for part in _parts(piece)
        ]

    def _id(self, token: bytes) -> int:
        if token not in self.ids:
            self.ids[token] = len(self.tokens)
            self.tokens.append(token)
        return self.ids[token]


def _parts(piece: str) -> list[bytes]:
    data = piece.encode()
    if len(data) > 3 and not piece.isascii() and not piece.strip().isalpha():
        return [data[:-2], data[-2:-1], data[-1:]]
    return [data]


@dataclass
class Published:
    """What the tests address."""

    sae: Sae
    run: Run
    dataset: Dataset
    words: Words
    windows: list[list[int]]

    def url(self, index: int, rest: str = "") -> str:
        return f"/s/{self.sae.public_id}/{index}{rest}"


def publish(d_sae: int = D_SAE, ctx_len: int = CTX_LEN, unembedding: bool = True) -> Published:
    """Store a language model, a data set, an SAE and its live run."""
    words = Words()
    windows = _windows(words, ctx_len)
    for i in range(30):
        words.encode(f" word{i}")
    lm = LanguageModel.objects.create(
        name=f"gpt2-small-{ctx_len}",
        source="gpt2",
        sha256=f"{ctx_len:064x}",
        architecture="GPT2",
        d_model=16,
        n_layers=2,
        n_ctx=ctx_len,
        d_vocab=len(words.tokens),
        vocabulary=packing.pack_vocabulary(words.tokens, [i == 0 for i in range(len(words.tokens))]),
    )
    dataset = Dataset.objects.create(
        name="moonlight", source="tests", lm=lm, ctx_len=ctx_len, n_contexts=len(windows), ready=True
    )
    sae = Sae.objects.create(
        sha256=f"7f3a9c2e{ctx_len:04x}".ljust(64, "0"),
        slug=f"topk-32-{ctx_len}",
        name="TopK 32, 24",
        lm=lm,
        format="sae_lens",
        hook_name="blocks.8.hook_resid_pre",
        architecture="topk",
        d_in=16,
        d_out=16,
        d_sae=d_sae,
        k=4,
        path="x",
    )
    run = Run.objects.create(
        sae=sae,
        number=3,
        dataset=dataset,
        state=Run.State.LIVE,
        tokens_total=N_TOKENS,
        tokens_done=N_TOKENS,
        summary={
            "tokens": N_TOKENS,
            "sample_tokens": {"margin": 8192, "cofiring": 4096},
            "quantiles": {"max_act": list(np.linspace(0, 60, 101)), "decoder_norm": [1.0] * 101},
        },
    )
    sae.current_run = run
    sae.save()
    published = Published(sae, run, dataset, words, windows)
    _write(published, unembedding)
    return published


def _windows(words: Words, ctx_len: int) -> list[list[int]]:
    """Every text is followed by others until the window is full, documents separated within it."""
    separator = [0]
    out = []
    for i in range(3 * len(TEXTS)):
        ids: list[int] = []
        for j in range(ctx_len):
            if len(ids) >= ctx_len:
                break
            ids += words.encode(TEXTS[(i + j) % len(TEXTS)]) + separator
        out.append(ids[:ctx_len])
    return out


def _write(p: Published, unembedding: bool) -> None:
    with connection.cursor() as cursor:
        for parent, key in (("context", p.dataset.pk), ("latent", p.run.pk), ("latent_page", p.run.pk)):
            cursor.execute(f"create table {parent}_{key} partition of {parent} for values in ({key})")
        for i, ids in enumerate(p.windows):
            tokens = np.array(ids, packing.token_dtype(p.dataset.lm.d_vocab)).tobytes()
            row = [p.dataset.pk, i, 2 * i, 5, tokens, "text"]
            cursor.execute("insert into context values (%s, %s, %s, %s, %s, %s)", row)
        for i in range(4 * len(p.windows)):
            cursor.execute("insert into document values (%s, %s, %s)", [p.dataset.pk, i, f"document {i}"])
        for index in range(p.sae.d_sae):
            _insert_latent(cursor, p, index, unembedding)


def _insert_latent(cursor: Any, p: Published, index: int, unembedding: bool) -> None:
    firings = {DEAD: 0, RARE: 1}.get(index, 2104)
    values = {
        "run_id": p.run.pk,
        "index": index,
        "status": 0 if not firings else 1 if firings < 10 else 2,
        "firings": firings,
        "density": firings / N_TOKENS,
        "decoder_norm": 1.0,
        "b_enc": -1.42,
        "encoder_decoder_cos": 0.71,
        "nearest_cos": 0.71,
        "nearest_live": PLAIN,
        "nearest_live_cos": 0.55,
        "opposing_cos": -0.41,
        "dimensionality": 0.118,
        "logit_std": 0.16,
        "logit_skewness": 1.9,
        "logit_kurtosis": 8.1,
        "strongest": [p.words.ids[t] for t in (b" moon", b" Moon")] if firings else [],
        "promoted": [3],
        "spark": b"\0" * 18,
    }
    values["margin"] = 12.5 if firings else -0.42
    if firings:
        values |= {"max_act": 48.2, "mean_act": 13.9}
    if firings > 4:
        shape = {
            "std_act": 9.1,
            "skewness": 1.2,
            "kurtosis": 4.4,
            "kurtosis_all": 5131.0,
            "kurtosis_zero": 10412.0,
        }
        values |= shape
    columns = ", ".join(values)
    cursor.execute(
        f"insert into latent ({columns}) values ({', '.join(['%s'] * len(values))})", list(values.values())
    )
    blobs = (
        packers.pack_examples(_examples(p, firings)),
        packers.pack_histogram(_histogram(firings)),
        packers.pack_logits(_logits(len(p.words.tokens) if unembedding else 0)),
        packers.pack_neighbours(_neighbours(index, p.sae.d_sae)),
    )
    near = b"" if firings else packers.pack_misses(_misses(p)), packers.pack_cofiring(_together(index, firings))
    names = '"run_id", "index", examples, histogram, logits, neighbours, misses, cofiring'
    marks = ", ".join(["%s"] * 8)
    cursor.execute(f"insert into latent_page ({names}) values ({marks})", [p.run.pk, index, *blobs, *near])


def _misses(p: Published) -> Misses:
    """In three windows, at the first moon or the middle."""
    peaks = np.array([_peak(p, window) for window in range(3)], np.uint16)
    return Misses(np.arange(3, dtype=np.uint32), peaks, np.array([-0.42, -0.5, -1.25], np.float32))


def _together(index: int, firings: int) -> Together:
    """With the next and the one after it, half and a third of the time; the nearest decoder is among them."""
    some = np.array([], np.uint32)
    if not firings:
        return Together(4096, 0, some, some, some, *[np.zeros(10, np.uint32)] * 4)
    latent, both = np.array([index + 1, index + 2], np.uint32), np.array([60, 40], np.uint32)
    beside = [np.arange(10, dtype=np.uint32) * n for n in (5, 9, 0, 3)]
    return Together(4096, 90, latent, both, np.array([90, 70], np.uint32), *beside)


def _peak(p: Published, window: int) -> int:
    """The first moon of a window, else its middle: sometimes part of a character."""
    wanted = {p.words.ids.get(t, -1) for t in (b" moon", b" Moon", b"moon")}
    return next((i for i, t in enumerate(p.windows[window]) if t in wanted), len(p.windows[window]) // 2)


def _examples(p: Published, firings: int) -> Examples:
    chosen = [(TOP, i) for i in range(min(firings, 20))]
    if firings > 1:
        chosen += [
            (band, (5 * band + i) % len(p.windows)) for band in range(1, N_INTERVALS + 1) for i in range(5)
        ]
        chosen += [(RANDOM, i) for i in range(10)]
    else:
        chosen += [(N_INTERVALS, 0), (RANDOM, 0)][: 2 * firings]
    interval, context, peak, counts, position, act = [], [], [], [0], [], []
    for n, (kind, window) in enumerate(chosen):
        at = _peak(p, window)
        strength = 48.2 - 0.4 * n if kind == TOP else 4.82 * (kind - 0.5) if kind <= N_INTERVALS else 7.0
        places = {at: strength, at + 1: strength / 12, at + 9: strength / 1.6, 2: 1.0}
        kept = sorted((i, a) for i, a in places.items() if i < len(p.windows[window]))
        interval.append(kind), context.append(window), peak.append(at), counts.append(len(kept))
        position += [i for i, _ in kept]
        act += [a for _, a in kept]
    return Examples(
        np.array(interval, np.uint8),
        np.array(context, np.uint32),
        np.array(peak, np.uint16),
        np.cumsum(counts).astype(np.int64),
        np.array(position, np.uint16),
        np.array(act, np.float32),
    )


def histogram_of(acts: Sequence[float]) -> Histogram:
    """As a run counts them: logarithmic bins, and ten bands of (0, max]."""
    values = np.asarray(acts, np.float64)
    if not len(values):
        return Histogram(0, np.zeros(0, np.uint32), np.zeros(N_INTERVALS, np.uint32))
    edges = packing.bin_edges(np.arange(N_BINS + 1))
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, N_BINS - 1)
    bands = np.clip(np.ceil(values / values.max() * N_INTERVALS).astype(int) - 1, 0, N_INTERVALS - 1)
    first = int(bins.min())
    counts = np.bincount(bins - first).astype(np.uint32)
    return Histogram(first, counts, np.bincount(bands, minlength=N_INTERVALS).astype(np.uint32))


def _histogram(firings: int) -> Histogram:
    rng = np.random.default_rng(0)
    acts = np.concatenate([rng.exponential(9, firings) + 2, rng.normal(38, 4, firings // 5)])[
        : max(firings, 0)
    ]
    acts = np.minimum(acts, 47)
    if firings:
        acts[0] = 48.2
    return histogram_of(acts[:firings])


def _logits(d_vocab: int) -> Logits:
    if not d_vocab:
        none, nothing = np.zeros(0, np.uint32), np.zeros(0, np.float32)
        return Logits(none, nothing, none, nothing, 0.0, 0.0, none)
    counts = np.histogram(np.random.default_rng(1).normal(0.05, 0.16, 50257), 64, (-0.65, 1.0))[0]
    up, down = np.arange(1, 21), np.arange(21, 41)
    effects = np.linspace(0.93, 0.4, 20)
    return Logits(
        up.astype(np.uint32),
        effects.astype(np.float32),
        down.astype(np.uint32),
        (-effects / 2).astype(np.float32),
        -0.65,
        1.0,
        counts.astype(np.uint32),
    )


def _neighbours(index: int, d_sae: int) -> Neighbours:
    others = np.array([i for i in range(d_sae) if i != index][:10], np.uint32)
    cosines = np.linspace(0.71, 0.3, len(others)).astype(np.float32)
    return Neighbours(others, cosines, others[::-1].copy(), -cosines * np.float32(0.6))
