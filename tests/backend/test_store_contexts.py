"""Datasets: a context's tokens are stored once and come back as they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from django.db import connections

from sae_backend import store
from sae_backend.models import Context, Dataset, Document
from tests.backend import synthetic
from tests.backend.synthetic import a_dataset, tokens_of, write_contexts

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(("d_vocab", "width"), [(65_536, 2), (65_537, 4)])
def test_contexts_come_back_as_they_were_written(d_vocab: int, width: int) -> None:
    dataset = a_dataset(50)
    dataset.lm.d_vocab = d_vocab
    tokens = tokens_of(dataset, 40)
    tokens[0, :2] = 0, d_vocab - 1
    write_contexts(dataset, tokens)
    np.testing.assert_array_equal(store.read_contexts(dataset, 0, 40), tokens)
    np.testing.assert_array_equal(store.read_contexts(dataset, 7, 11), tokens[7:11])
    assert store.read_contexts(dataset, 40, 50).shape == (0, 8)
    assert len(Context.objects.get(dataset_id=dataset.pk, index=0).tokens) == 8 * width


def test_a_dataset_says_what_it_holds() -> None:
    dataset = a_dataset()
    assert (dataset.n_contexts, dataset.n_tokens, dataset.n_documents, dataset.ready) == (24, 24 * 8, 1, True)


def test_writing_a_dataset_again_replaces_it() -> None:
    dataset = a_dataset()
    for n in (10, 12, 30):
        write_contexts(dataset, tokens_of(dataset, n, seed=n))
    np.testing.assert_array_equal(store.read_contexts(dataset, 0, 99), tokens_of(dataset, 30, seed=30))
    assert Context.objects.filter(dataset_id=dataset.pk).count() == 30
    assert Document.objects.filter(dataset_id=dataset.pk).count() == 1


def test_text_that_ends_early_leaves_what_was_there() -> None:
    dataset = a_dataset()

    def texts() -> Iterator[str]:
        yield "one"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_contexts(dataset, tokens_of(dataset, 10), texts())
    np.testing.assert_array_equal(store.read_contexts(dataset, 0, 99), tokens_of(dataset, 24))
    assert synthetic.query("select 1 from pg_class where relname = %s", f"context_d{dataset.pk}_new") == []


def test_pages_read_contexts_while_another_dataset_is_written() -> None:
    first, second = a_dataset(), a_dataset()
    new = Dataset.objects.create(name="new", source="tests", lm=second.lm, ctx_len=8)
    begun, go_on = threading.Event(), threading.Event()

    def texts() -> Iterator[str]:
        begun.set()
        go_on.wait(240)
        yield from map(str, range(10))

    def write() -> None:
        write_contexts(new, tokens_of(new, 10), texts())
        connections.close_all()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(240)
        with synthetic.waiting_at_most(60):
            assert len(store.read_contexts(first, 0, 24)) == 24
    finally:
        go_on.set()
        writer.join()
    assert len(store.read_contexts(new, 0, 10)) == 10


def test_a_part_of_a_text_is_found_through_the_index() -> None:
    dataset = a_dataset()
    table = f"context_d{dataset.pk}"
    assert "gin_trgm_ops" in str(synthetic.query("select indexdef from pg_indexes where tablename = %s", table))
    assert synthetic.query(f"select index from context where dataset_id = {dataset.pk} and text like '%xt 23%'") == [
        (23,)
    ]


def test_characters_that_postgresql_refuses_are_replaced() -> None:
    dataset = a_dataset()
    write_contexts(dataset, tokens_of(dataset, 1), ["a\0b"])
    assert Context.objects.get(dataset_id=dataset.pk, index=0).text == "a�b"
