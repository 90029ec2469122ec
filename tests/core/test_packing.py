"""Packed columns come back as they went in."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sae_backend import packing
from sae_backend.packing import Examples, Histogram, Logits, Neighbours

FLOATS = st.floats(-1e6, 1e6, width=32)
U32 = st.integers(0, 2**32 - 1)


def array(dtype: Any, n: int, elements: st.SearchStrategy[Any]) -> st.SearchStrategy[np.ndarray]:
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
def logits(draw: st.DrawFn) -> Logits:
    m, bins = draw(st.integers(0, 12)), draw(st.integers(0, 60))
    ids, effects = array(np.uint32, m, U32), array(np.float32, m, FLOATS)
    counts = array(np.uint32, bins, U32)
    return Logits(*map(draw, (ids, effects, ids, effects, FLOATS, FLOATS, counts)))


@st.composite
def neighbours(draw: st.DrawFn) -> Neighbours:
    m = draw(st.integers(0, 12))
    ids, cos = array(np.uint32, m, U32), array(np.float32, m, st.floats(-1, 1, width=32))
    return Neighbours(*map(draw, (ids, cos, ids, cos)))


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    counts = draw(array(np.uint32, draw(st.integers(0, packing.N_BINS)), U32))
    return Histogram(draw(st.integers(0, packing.N_BINS - 1)), counts, draw(array(np.uint32, packing.N_INTERVALS, U32)))


def assert_equal(a: Any, b: Any) -> None:
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert np.array_equal(x, y), f.name
        assert np.asarray(x).dtype == np.asarray(y).dtype, f.name


@settings(max_examples=100, deadline=None)
@given(examples())
def test_examples_come_back_their_activations_within_a_sixteenth_bit(e: Examples) -> None:
    back = packing.unpack_examples(packing.pack_examples(e))
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
def test_histograms_logits_and_neighbours_come_back_exactly(h: Histogram, x: Logits, n: Neighbours) -> None:
    assert_equal(packing.unpack_histogram(packing.pack_histogram(h)), h)
    assert_equal(packing.unpack_logits(packing.pack_logits(x)), x)
    assert_equal(packing.unpack_neighbours(packing.pack_neighbours(n)), n)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=9), st.booleans()), max_size=50))
def test_a_vocabulary_comes_back_byte_for_byte(words: list[tuple[bytes, bool]]) -> None:
    tokens, special = [w for w, _ in words], [s for _, s in words]
    assert packing.unpack_vocabulary(packing.pack_vocabulary(tokens, special)) == (tokens, special)


def test_a_latent_without_examples_is_a_header() -> None:
    none = Examples(*(np.zeros(0, t) for t in (np.uint8, np.uint32, np.uint16)), np.zeros(1, np.int64),
                    np.zeros(0, np.uint16), np.zeros(0, np.float32))  # fmt: skip
    blob = packing.pack_examples(none)
    assert len(blob) == 8
    assert len(packing.unpack_examples(blob).interval) == 0


@pytest.mark.parametrize("unpack", ["examples", "histogram", "logits", "neighbours", "vocabulary"])
def test_another_version_is_refused_with_a_sentence(unpack: str) -> None:
    blob = bytes([packing.VERSION + 1]) + bytes(40)
    with pytest.raises(ValueError, match="packed column of version 2; this code reads 1: migrate the run"):
        getattr(packing, f"unpack_{unpack}")(blob)


@pytest.mark.parametrize(("d_vocab", "dtype"), [(65536, "<u2"), (65537, "<u4")])
def test_token_ids_take_two_bytes_where_they_fit(d_vocab: int, dtype: str) -> None:
    assert packing.token_dtype(d_vocab) == dtype
    assert np.array([d_vocab - 1]).astype(dtype)[0] == d_vocab - 1
