"""Packed columns: a shard's are what the plain packers give one by one, and come back as they went in."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sae_backend import packing
from sae_backend.core import pages
from sae_backend.core.results import (
    CofiringByLatent,
    ExamplesByLatent,
    HistogramsByLatent,
    LogitsByLatent,
    MissesByLatent,
    NeighboursByLatent,
)
from sae_backend.packing import Examples
from tests import packers

FLOATS = st.floats(-1e6, 1e6, width=32)
U32 = st.integers(0, 2**32 - 1)


def array(dtype: Any, n: int | tuple[int, ...], elements: st.SearchStrategy[Any]) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(dtype, n, elements=elements)


@st.composite
def examples(draw: st.DrawFn) -> Examples:
    ctx_len = draw(st.sampled_from([16, 256, 257, 2048]))
    rows = draw(
        st.lists(st.sets(st.integers(0, ctx_len - 1), min_size=1, max_size=min(ctx_len, 40)).map(sorted), max_size=20)
    )
    n, nnz = len(rows), sum(map(len, rows))
    return Examples(
        interval=draw(array(np.uint8, n, st.integers(0, packing.RANDOM))),
        context=draw(array(np.uint32, n, U32)),
        peak=np.array([draw(st.sampled_from(r)) for r in rows], np.uint16),
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        position=np.array([p for r in rows for p in r], np.uint16),
        act=draw(array(np.float32, nnz, st.floats(2**-20, 2**20, width=32))),
    )


@st.composite
def histograms(draw: st.DrawFn) -> HistogramsByLatent:
    """Counts in some bins, sparse ones and none."""
    n = draw(st.integers(1, 6))
    bins = draw(hnp.arrays(np.uint32, (n, packing.N_BINS), elements=U32, fill=st.just(0)))
    bins[:, draw(st.integers(0, packing.N_BINS)) :] = 0
    return HistogramsByLatent(bins, draw(array(np.uint32, (n, packing.N_INTERVALS), U32)))


@st.composite
def logits(draw: st.DrawFn) -> LogitsByLatent:
    """Some latents without; m lists and bins of any length, but never none."""
    n, m, bins = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 60))
    ids, effects, ends = array(np.uint32, (n, m), U32), array(np.float32, (n, m), FLOATS), array(np.float32, n, FLOATS)
    counts = array(np.uint32, (n, bins), U32)
    return LogitsByLatent(*map(draw, (array(bool, n, st.booleans()), ids, effects, ids, effects, ends, ends, counts)))


@st.composite
def neighbours(draw: st.DrawFn) -> NeighboursByLatent:
    """Some missing: as many nearest as opposing ones."""
    n, m = draw(st.integers(1, 6)), draw(st.integers(0, 12))
    ids, cos = array(np.uint32, (n, m), U32), array(np.float32, (n, m), st.floats(-1, 1, width=32))
    missing = draw(array(bool, (n, m), st.booleans()))
    near_cos, far_cos = draw(cos), draw(cos)
    near_cos[missing], far_cos[missing[:, ::-1]] = -np.inf, draw(st.sampled_from([np.inf, np.nan]))
    return NeighboursByLatent(draw(ids), near_cos, draw(ids), far_cos)


def assert_equal(a: Any, b: Any) -> None:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert np.array_equal(x, y), f.name
        assert np.asarray(x).dtype == np.asarray(y).dtype, f.name


@settings(max_examples=100, deadline=None)
@given(st.lists(examples(), min_size=1, max_size=5))
def test_a_shards_examples_are_packed_as_each_alone(records: list[Examples]) -> None:
    together = ExamplesByLatent.of(records)
    assert packers.rows(pages.examples(together)) == [packers.pack_examples(e) for e in records]
    for ours, record in zip(together, records, strict=True):
        assert_equal(ours, record)


@settings(max_examples=60, deadline=None)
@given(histograms(), logits(), neighbours())
def test_a_shards_histograms_logits_and_neighbours_are_packed_as_each_alone(
    h: HistogramsByLatent, x: LogitsByLatent, n: NeighboursByLatent
) -> None:
    assert packers.rows(pages.histograms(h)) == [packers.pack_histogram(record) for record in h]
    assert packers.rows(pages.logits(x)) == [packers.pack_logits(record) for record in x]
    assert packers.rows(pages.neighbours(n)) == [packers.pack_neighbours(record) for record in n]


@settings(max_examples=100, deadline=None)
@given(examples())
def test_examples_come_back_their_activations_within_a_sixteenth_bit(e: Examples) -> None:
    back = packing.unpack_examples(*packers.rows(pages.examples(ExamplesByLatent.of([e]))))
    for name in ("interval", "context", "peak", "offsets", "position"):
        assert np.array_equal(getattr(back, name), getattr(e, name)), name
        assert getattr(back, name).dtype == getattr(e, name).dtype, name
    if e.act.size:
        top, coarse = float(e.act.max()), e.act < e.act.max() / 131070
        assert back.act.max() == pytest.approx(top, rel=1e-6)
        assert (back.act > 0).all()
        assert np.abs(back.act - e.act)[~coarse].max(initial=0) <= 8e-6 * top
        assert np.abs(back.act - e.act)[coarse].max(initial=0) <= 2e-5 * top


@settings(max_examples=50, deadline=None)
@given(histograms(), logits(), neighbours())
def test_histograms_logits_and_neighbours_come_back_exactly(
    h: HistogramsByLatent, x: LogitsByLatent, n: NeighboursByLatent
) -> None:
    blobs = pages.histograms(h), pages.logits(x), pages.neighbours(n)
    unpack = packing.unpack_histogram, packing.unpack_logits, packing.unpack_neighbours
    for packed, one, records in zip(blobs, unpack, (h, x, n), strict=True):
        for blob, record in zip(packers.rows(packed), records, strict=True):  # type: ignore[call-overload]
            assert_equal(one(blob), record)


@pytest.mark.parametrize("sets", [0, 1, 14])
def test_z_of_token_sets_comes_back_exactly(sets: int) -> None:
    z = np.random.default_rng(0).normal(0, 9, (5, sets)).astype(np.float32)
    z[:, :1] = np.nan
    for blob, row in zip(packers.rows(pages.enrichments(z)), z, strict=True):
        assert blob == packers.pack_enrichment(row)
        assert np.array_equal(packing.unpack_enrichment(blob), row, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(histograms(), logits(), neighbours())
def test_records_laid_together_are_read_one_by_one(
    h: HistogramsByLatent, x: LogitsByLatent, n: NeighboursByLatent
) -> None:
    for records in (h, x, n):
        for a, b in zip(type(records).of(list(records)), records, strict=True):  # type: ignore[attr-defined]
            assert_equal(a, b)


@st.composite
def misses(draw: st.DrawFn) -> MissesByLatent:
    n, m = draw(st.integers(1, 6)), draw(st.integers(0, 5))
    margin = draw(array(np.float32, (n, m), st.floats(-9, 0, width=32)))
    for i, length in enumerate(draw(st.lists(st.integers(0, m), min_size=n, max_size=n))):
        margin[i, length:] = np.nan
    context, peak = array(np.uint32, (n, m), U32), array(np.uint16, (n, m), st.integers(0, 999))
    return MissesByLatent(draw(context), draw(peak), margin)


@st.composite
def cofirings(draw: st.DrawFn) -> CofiringByLatent:
    n, m, beside = draw(st.integers(1, 6)), draw(st.integers(0, 10)), draw(st.integers(0, 10))
    counts, sides = st.integers(0, 65_536), []
    latent = draw(array(np.int64, (n, m), st.integers(0, 2**31)))
    for i, length in enumerate(draw(st.lists(st.integers(0, m), min_size=n, max_size=n))):
        latent[i, length:] = -1
    for _ in range(2):
        there = draw(array(bool, (n, beside), st.booleans()))
        sides += [np.where(there, draw(array(np.int64, (n, beside), counts)), -1) for _ in range(2)]
    lists = (draw(array(np.uint32, (n, m), counts)) for _ in range(2))
    return CofiringByLatent(draw(counts), draw(array(np.uint32, n, counts)), latent, *lists, *sides)


@settings(max_examples=50, deadline=None)
@given(misses(), cofirings())
def test_misses_and_what_fires_together_come_back_exactly(m: MissesByLatent, c: CofiringByLatent) -> None:
    for blob, record in zip(packers.rows(pages.misses(m)), m, strict=True):
        assert blob == packers.pack_misses(record)
        back = packing.unpack_misses(blob)
        assert (back is None) == (not len(record.context))
        if back is not None:
            assert_equal(back, record)
    for blob, record in zip(packers.rows(pages.cofiring(c)), c, strict=True):
        assert blob == packers.pack_cofiring(record)
        assert_equal(packing.unpack_cofiring(blob), record)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=9), st.booleans()), max_size=50))
def test_a_vocabulary_comes_back_byte_for_byte(words: list[tuple[bytes, bool]]) -> None:
    tokens, special = [w for w, _ in words], [s for _, s in words]
    assert packing.unpack_vocabulary(packing.pack_vocabulary(tokens, special)) == (tokens, special)


def test_a_latent_without_examples_is_a_header() -> None:
    none = Examples(*(np.zeros(0, t) for t in (np.uint8, np.uint32, np.uint16)), np.zeros(1, np.int64),
                    np.zeros(0, np.uint16), np.zeros(0, np.float32))  # fmt: skip
    for packed in packers.rows(pages.examples(ExamplesByLatent.of([none] * 3))):
        assert len(packed) == 8
        assert len(packing.unpack_examples(packed).interval) == 0


@pytest.mark.parametrize(
    "unpack", ["examples", "histogram", "logits", "neighbours", "misses", "cofiring", "enrichment", "vocabulary"]
)
def test_another_version_is_refused_with_a_sentence(unpack: str) -> None:
    blob = bytes([packing.VERSION + 1]) + bytes(40)
    with pytest.raises(ValueError, match="packed column of version 2; this code reads 1: migrate the run"):
        getattr(packing, f"unpack_{unpack}")(blob)


@pytest.mark.parametrize(("d_vocab", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_token_ids_take_two_bytes_where_they_fit(d_vocab: int, dtype: str) -> None:
    assert packing.token_dtype(d_vocab) == dtype
    assert np.array([d_vocab - 1]).astype(dtype)[0] == d_vocab - 1
