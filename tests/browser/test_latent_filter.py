"""Filters on packed columns: what PostgreSQL says of the same rows, in every order, page after page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from django.db import connection

from browser.queries import latent_filter, latent_list
from browser.queries.columns import BY_NAME
from browser.queries.latent_list import Filter, read_filter
from browser.queries.latents import with_tokens
from sae_backend import packed_columns, store
from sae_backend.models import Run
from tests.browser import sae_rows

pytestmark = pytest.mark.django_db(transaction=True)
SORTED = ("index", "density", "max_act", "kurtosis", "decoder_norm", "opposing_cos")  # max_act has many equal values
FILTERS: list[dict[str, str]] = [
    {"status": "dead,dense"}, {"status": "dead,rare,alive,dense"}, {"dmin": "1e-3"},
    {"kmin": "2", "kmax": "4"}, {"dmin": "1e-5", "kmin": "3", "status": "alive"}, {"dmin": "0.9", "kmin": "1e9"},
    {"by": "index", "from": "50", "to": "60.5"}, {"by": "decoder_norm", "to": "0.5", "token": "moon"},
    {"token": "moon", "of": "promoted"}, {"token": "no such token"},
]  # fmt: skip


@pytest.fixture
def run() -> Run:
    return sae_rows.publish(sae_rows.new_sae()).run


def walk(run: Run, wanted: Filter, size: int) -> tuple[list[int], int | None]:
    """Indices of every page, and the count of the first."""
    first, matches = latent_list.listed(run.pk, wanted, size)
    found, after = [row["index"] for row in first.rows], first.after
    while after is not None:
        rest = latent_list.page(run.pk, replace(wanted, after=after), size)
        found, after = found + [row["index"] for row in rest.rows], rest.after
    return found, matches


@pytest.mark.parametrize("many", [0, 10_000])
def test_a_filter_finds_what_postgresql_finds_in_every_order(
    run: Run, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    """With few latents counted as many, pages are cut by a sample."""
    monkeypatch.setattr(latent_filter, "MANY", many)
    monkeypatch.setattr(latent_filter, "SAMPLE", 16)
    sorts = [sign + column for column in SORTED for sign in ("", "-")]
    lm = run.sae.lm
    asked = [with_tokens(read_filter({**query, "sort": sort}), lm) for query in FILTERS for sort in sorts]
    packed = [walk(run, wanted, 70) for wanted in asked]
    packed_columns.drop(run.pk)
    latent_filter.forget()
    assert packed == [walk(run, wanted, 70) for wanted in asked]
    assert sum(len(found) for found, _ in packed) > 5_000


def test_of_many_equal_values_the_page_is_cut_by_index() -> None:
    values, passing = np.repeat([2.0, 1.0, 3.0], 1000), np.ones(3000, bool)
    at = np.flatnonzero(passing)
    for descending, expected in ((False, range(1000, 1005)), (True, range(2999, 2994, -1))):
        wanted = latent_filter.Wanted((), (), None, "x", descending)
        assert latent_filter._page(values, passing, wanted, 5) == list(expected)
        assert len(latent_filter._likely(values, passing, at, 5, descending)) < 3000


@pytest.mark.parametrize("n", [0, 1, latent_filter.FEW, latent_filter.FEW + 1])
def test_few_and_many_tokens_are_looked_for_alike(n: int) -> None:
    tokens = np.random.default_rng(0).integers(-1, 20, (4, 500), np.int32)
    ids = tuple(range(3, 3 + n))
    found = latent_filter._has_token([tokens[:3], tokens[3:]], ids)
    assert found.tolist() == np.isin(tokens, ids).any(0).tolist() and found.any() == (n > 0)


def test_columns_are_read_once(run: Run) -> None:
    wanted = read_filter({"dmin": "1e-4", "sort": "-kurtosis"})
    first = latent_list.listed(run.pk, wanted)
    packed_columns.drop(run.pk)  # what is in memory is a published run's, and stays right
    assert latent_list.listed(run.pk, wanted) == first


def test_columns_beyond_what_is_kept_are_read_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_filter, "KEPT_BYTES", 3000)
    everything = [read_filter({"dmin": "1e-4", "sort": f"-{column}"}) for column in BY_NAME]
    first = [latent_list.listed(run.pk, wanted) for wanted in everything]
    assert sum(column.nbytes for column in latent_filter._columns.values()) <= 3 * 8 * sae_rows.D_SAE
    assert [latent_list.listed(run.pk, wanted) for wanted in everything] == first


def test_packed_columns_are_the_rows_and_go_with_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_columns, "PART", 128)
    table = store.tables(run.pk)[0]
    packed_columns.write(run.pk, table, store.SORTABLE, sae_rows.D_SAE)
    found = packed_columns.read(run.pk, ["status", *store.SORTABLE])
    with connection.cursor() as cursor:
        cursor.execute(f"select status, {', '.join(store.SORTABLE)} from {table} order by index")
        rows = np.array(cursor.fetchall(), float)
    for i, name in enumerate(["status", *store.SORTABLE]):
        np.testing.assert_array_equal(found[name], rows[:, i], name)
    store.drop_whatever(run.pk)
    assert packed_columns.read(run.pk, ["status"]) == {}
