"""An SAE's page and its table: every sort and filter visits what it should, once."""

from __future__ import annotations

import csv
import io
import re
from itertools import islice
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from django.db import connection
from django.http import QueryDict
from django.test import Client
from django.test.utils import CaptureQueriesContext

from browser.queries import latent_filter, latent_list, saes, scatter
from browser.queries.columns import BY_NAME, COLUMNS
from browser.queries.latent_list import Filter, read_filter
from sae_backend import packed_columns, runs, store
from sae_backend.models import STATUS_NAMES, Run
from tests.browser import sae_rows
from tests.browser.sae_rows import D_SAE, DEAD, DENSE, RARE, Stats

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def published() -> Stats:
    return sae_rows.publish()


def get(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200, url
    return response.content.decode()


def walk(client: Client, url: str) -> list[dict[str, Any]]:
    """All rows of a list by following `next`."""
    rows: list[dict[str, Any]] = []
    while url:
        data = client.get(url).json()
        assert data["ignored"] == [] and len(data["latents"]) <= 50
        rows += data["latents"]
        url = data["next"]
    return rows


def test_what_can_be_sorted_is_what_the_store_indexes() -> None:
    assert {column.name for column in COLUMNS} == set(store.SORTABLE)


def test_every_sort_visits_every_latent_that_has_the_statistic_once_and_in_order(
    client: Client, published: Stats
) -> None:
    for name in BY_NAME:
        for sort in (name, f"-{name}"):
            rows = walk(client, f"/s/{published.sae.public_id}/latents.json?sort={sort}")
            values = published.values.get(name, np.arange(D_SAE))
            fires = published.values["firings"] > 0
            has = np.ones(D_SAE, bool) if name == "index" else fires & ~np.isnan(values)
            found = [row["index"] for row in rows]
            wanted = sorted(np.flatnonzero(has), key=lambda i: (values[i], i), reverse=sort[0] == "-")
            assert found == wanted, sort
            assert [row[name] for row in rows] == [values[i] for i in found], sort


def test_each_status_lists_its_latents_and_dead_ones_come_by_index(client: Client, published: Stats) -> None:
    status = published.values["status"]
    for i, name in enumerate(STATUS_NAMES):
        rows = walk(client, f"/s/{published.sae.public_id}/latents.json?status={name}")
        assert sorted(row["index"] for row in rows) == np.flatnonzero(status == i).tolist(), name
        assert {row["status"] for row in rows} == {name}
    dead = walk(client, f"/s/{published.sae.public_id}/latents.json?status=dead&sort=-max_act")
    assert [row["index"] for row in dead] == list(range(DEAD))
    both = walk(client, f"/s/{published.sae.public_id}/latents.json?status=dead&status=rare&sort=-decoder_norm")
    assert len(both) == DEAD + RARE
    assert len(walk(client, f"/s/{published.sae.public_id}/latents.json?sort=index")) == D_SAE


def test_ranges_of_density_and_kurtosis_include_their_bounds(client: Client, published: Stats) -> None:
    density, kurtosis = published.values["density"], published.values["kurtosis"]
    low, high = (float(np.sort(density)[i]) for i in (90, 200))
    url = f"/s/{published.sae.public_id}/latents.json"
    rows = walk(client, f"{url}?dmin={low!r}&dmax={high!r}&kmin=3&kmax=8")
    wanted = (density >= low) & (density <= high) & (kurtosis >= 3) & (kurtosis <= 8)
    assert sorted(row["index"] for row in rows) == np.flatnonzero(wanted).tolist()
    assert any(row["density"] == high for row in walk(client, f"{url}?dmax={high!r}"))
    assert any(row["density"] == low for row in walk(client, f"{url}?dmin={low!r}"))


def test_what_makes_no_sense_is_left_out_and_named(client: Client, published: Stats) -> None:
    query = {
        "sort": "run_id; drop table latent",
        "dmin": "x",
        "kmin": "nan",
        "status": "alive,undead",
        "after": "1",
    }
    wanted = read_filter(query)
    assert wanted.sort == latent_list.DEFAULT_SORT and wanted.ranges == () and wanted.after is None
    assert set(wanted.ignored) == {
        "sort=run_id; drop table latent",
        "dmin=x",
        "kmin=nan",
        "status=undead",
        "after=1",
    }
    page = get(client, f"/s/{published.sae.public_id}?dmin=<script>alert(1)</script>")
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page


def test_a_filter_survives_its_own_query_string() -> None:
    for wanted in (
        Filter(("rare", "alive"), (("dmin", 1e-5), ("kmax", 0.1 + 0.2)), "skewness", (0.1 + 0.2, 7)),
        Filter(("dead",), (), "index", (None, 9)),
        Filter(("dead", "rare", "alive", "dense"), (), "-decoder_norm"),
        Filter((), (("kmin", 3.0), ("from", 1e-3)), by="nearest_cos", token=" moon&", of="promoted"),
        Filter(),
    ):
        pairs = QueryDict(wanted.query()[1:]).dict()
        assert read_filter(pairs) == wanted, wanted.query()


def test_the_page_links_to_its_next_page_and_keeps_the_filter(client: Client, published: Stats) -> None:
    page = get(client, f"/s/{published.sae.public_id}?status=alive&dmin=1e-5")
    (next_,) = re.findall(r'rel="next" href="([^"]+)#latents"', page)
    second = get(client, f"/s/{published.sae.public_id}{next_.replace('&amp;', '&')}")
    rows = [re.findall(r'<td class="id"><a href="[^"]+/(\d+)"', p) for p in (page, second)]
    assert len(rows[0]) == len(rows[1]) == 50 and not set(rows[0]) & set(rows[1])
    assert "First page" in second and 'value="1e-05"' in second


def test_the_page_shows_the_run_and_its_charts(client: Client, published: Stats) -> None:
    page = get(client, f"/s/{published.sae.public_id}")
    for shown in (
        "97.9\u202f%",
        "3.316 → 3.482",
        "31.1",
        "float32",
        "moonlight",
        "280 latents that fired",
        "17.5",
    ):
        assert shown in page, shown
    assert page.count('class="b"') >= 2 and "vendor/plotly.min.js" in page
    assert "sorted by <b>" in page and "dead latents are left out" in page
    assert "&lt;script&gt;" in page  # a token of the vocabulary
    assert '<a href="?status=dead#latents">' in page


def test_a_statistic_not_shown_gets_a_column_when_it_is_sorted_by(client: Client, published: Stats) -> None:
    url = f"/s/{published.sae.public_id}"
    assert "skewness</a>" not in get(client, url)
    page = get(client, f"{url}?sort=-skewness")
    assert re.search(r'aria-sort="descending"><a href="[^"]*sort=skewness#latents"[^>]*>skewness</a>', page)


def test_opposing_pairs_are_listed_once(client: Client, published: Stats) -> None:
    page = get(client, f"/s/{published.sae.public_id}").split('id="h-o"')[1].split("</section>")[0]
    pairs = re.findall(r'<tr><td.*?/(\d+)">.*?/(\d+)">.*?</tr>', page)
    assert len(pairs) == 6 == len({frozenset(pair) for pair in pairs})
    assert all(int(a) + int(b) == D_SAE - 1 for a, b in pairs)
    assert page.count('<span class="tki s"> moon</span>') >= 6  # what each fires on


def test_a_token_lists_the_latents_that_fire_most_on_it_or_promote_it(client: Client, published: Stats) -> None:
    """Those that fire do so on " moon"; every latent promotes " star", the vocabulary's fifth."""
    url = f"/s/{published.sae.public_id}/latents.json?sort=index"
    fires = np.flatnonzero(published.values["firings"] > 0).tolist()
    for token in ("moon", "MOON ", "·moon", '" moon"'):
        assert [row["index"] for row in walk(client, f"{url}&token={token}")] == fires, token
    assert walk(client, f"{url}&token=moon&of=promoted") == walk(client, f'{url}&token="moon"') == []
    assert len(walk(client, f"{url}&token=star&of=promoted")) == D_SAE
    page = get(client, f"/s/{published.sae.public_id}?token=<b>noon")
    assert "No token of gpt2-small is “&lt;b&gt;noon”" in page and 'value="&lt;b&gt;noon"' in page


def test_any_statistic_can_be_bounded(client: Client, published: Stats) -> None:
    url, cos = f"/s/{published.sae.public_id}/latents.json?sort=index", published.values["nearest_cos"]
    rows = walk(client, f"{url}&by=nearest_cos&from=0.4&to=0.6")
    assert [row["index"] for row in rows] == np.flatnonzero((cos >= 0.4) & (cos <= 0.6)).tolist()
    assert read_filter({"by": "run_id", "from": "1"}).ignored == ("by=run_id", "from=1")
    assert read_filter({"to": "1"}).ignored == ("to=1",)


def test_the_csv_has_every_latent_of_the_filter(client: Client, published: Stats) -> None:
    response = client.get(f"/s/{published.sae.public_id}/latents.csv?sort=index")
    rows = list(csv.DictReader(io.StringIO(b"".join(response.streaming_content).decode())))
    assert [int(row["index"]) for row in rows] == list(range(D_SAE))
    assert rows[99]["nearest_live"] == "100" and rows[D_SAE - 1]["nearest_live"] == ""
    assert rows[0]["max_act"] == "" and float(rows[99]["density"]) == published.values["density"][99]
    assert 'filename="topk8-300-r1-latents.csv"' in response["Content-Disposition"]


def test_an_export_refuses_what_it_would_have_to_leave_out(client: Client, published: Stats) -> None:
    for query, odd in (("densty_min=1", "densty_min"), ("dmin=much", "dmin=much")):
        response = client.get(f"/s/{published.sae.public_id}/latents.csv?{query}")
        assert response.status_code == 400 and f"Not understood: {odd}" in response.content.decode()


def test_a_parquet_file_has_what_the_csv_has_and_the_tokens(
    client: Client, published: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("browser.exports.GROUP", 70)
    for query in ("", "?status=alive,rare&sort=-kurtosis&kmin=2", "?status=dead&kmin=99"):
        response = client.get(f"/s/{published.sae.public_id}/latents.parquet{query}")
        assert response["Content-Disposition"] == 'attachment; filename="topk8-300-r1-latents.parquet"'
        file = pq.ParquetFile(io.BytesIO(response.getvalue()))  # type: ignore[attr-defined]
        table = file.read()
        text = client.get(f"/s/{published.sae.public_id}/latents.csv{query}").getvalue().decode()  # type: ignore[attr-defined]
        lines = list(csv.DictReader(io.StringIO(text)))
        assert table.num_rows == len(lines) and file.num_row_groups == -(-len(lines) // 70), query
        for name in lines[0] if lines else ():
            values = ["" if v is None else str(v) for v in table.column(name).to_pylist()]
            assert values == [line[name] for line in lines], name
    assert file.schema_arrow.metadata[b"sae"] == f"{published.sae.public_id}@r1".encode()
    whole = client.get(f"/s/{published.sae.public_id}/latents.parquet").getvalue()  # type: ignore[attr-defined]
    rows = pq.read_table(io.BytesIO(whole)).to_pylist()
    assert len(rows) == D_SAE and rows[DEAD]["strongest"] == [" moon", "<script>", "f0 9f".upper()]
    assert client.get(f"/s/{published.sae.public_id}/latents.parquet?dmin=much").status_code == 400


def test_the_list_of_saes_is_a_file_too(client: Client, published: Stats) -> None:
    text = client.get("/saes.csv").getvalue().decode()  # type: ignore[attr-defined]
    [line] = csv.DictReader(io.StringIO(text))
    assert (line["id"], line["fvu"], line["k"]) == (published.sae.public_id, "0.142", "8")


def test_rows_of_an_export_come_in_pages(published: Stats) -> None:
    with CaptureQueriesContext(connection) as seen:
        rows = list(islice(latent_list.every(published.run.pk, Filter(), size=60), 130))
    assert len({row["index"] for row in rows}) == 130
    assert sum("order by" in q["sql"] for q in seen) == 3


def test_the_scatter_has_a_point_for_each_latent_with_a_kurtosis(
    client: Client, published: Stats, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"/s/{published.sae.public_id}/scatter.json"
    data = client.get(url).json()
    kurtosis = published.values["kurtosis"]
    assert data["index"] == np.flatnonzero(~np.isnan(kurtosis)).tolist() and not data["binned"]
    assert data["y"][3] == pytest.approx(np.log10(kurtosis[data["index"][3]]), abs=1e-4)
    monkeypatch.setattr("browser.queries.scatter.POINTS", 100)
    binned = client.get(url).json()
    assert binned["binned"] and sum(binned["count"]) == len(data["index"]) > len(binned["count"])
    members: dict[tuple[int, int], list[int]] = {}
    for i in data["index"]:
        x, y = np.log10(published.values["density"][i]), np.log10(kurtosis[i])
        members.setdefault((int(np.floor(x / 0.04)), int(np.floor(y / 0.04))), []).append(i)
    cells = zip(binned["x"], binned["y"], binned["count"], binned["index"], strict=True)
    found = {(round(x / 0.04 - 0.5), round(y / 0.04 - 0.5)): (n, i) for x, y, n, i in cells}
    assert found == {cell: (len(of), min(of)) for cell, of in members.items()}


def test_the_scatter_of_a_run_without_packed_columns_is_the_same(published: Stats) -> None:
    resolved = saes.resolve(published.sae.public_id)
    packed = scatter.scatter_json(resolved)
    packed_columns.drop(published.run.pk)
    latent_filter.forget()
    assert scatter.scatter_json(resolved) == packed


def test_the_json_of_the_page_describes_the_run(client: Client, published: Stats) -> None:
    data = client.get(f"/s/{published.sae.public_id}.json").json()
    assert data["id"] == published.sae.public_id and data["run"]["number"] == 1
    assert data["summary"]["counts"] == {
        "dead": DEAD,
        "rare": RARE,
        "alive": D_SAE - DEAD - RARE - DENSE,
        "dense": DENSE,
    }
    assert len(data["summary"]["quantiles"]["max_act"]) == 101


def test_a_pinned_page_stays_on_its_run_and_its_links_do(client: Client, published: Stats) -> None:
    sae_rows.publish(published.sae, seed=1)
    old = get(client, f"/s/{published.sae.public_id}@r1")
    assert "Superseded run" in old and f"/s/{published.sae.public_id}@r1/" in old
    assert f'href="/s/{published.sae.public_id}/' not in old
    assert ">r2</a>" in get(client, f"/s/{published.sae.public_id}")


def test_a_run_in_the_making_is_announced(client: Client, published: Stats) -> None:
    run = sae_rows.new_run(published.sae)
    page = get(client, f"/s/{published.sae.public_id}")
    assert "Run r2 is queued" in page and f"/jobs/{run.pk}" in page


def test_an_sae_without_a_live_run_shows_its_progress_at_its_address(client: Client) -> None:
    sae = sae_rows.new_sae()
    assert "No run has been asked for" in get(client, f"/s/{sae.public_id}")
    run = sae_rows.new_run(sae)
    page = get(client, f"/s/{sae.public_id}")
    assert f'data-poll="/jobs/{run.pk}/live?inside=1"' in page and "Waiting for a worker" in page
    data = client.get(f"/s/{sae.public_id}.json").json()
    assert data["run"] is None and data["job"]["state"] == "queued"
    assert client.get(f"/s/{sae.public_id}/latents.json").status_code == 404
    runs.fail(run.pk, "the disk is full; free 3 GB and ask again")
    assert "the disk is full; free 3 GB" in get(client, f"/s/{sae.public_id}")


def test_a_run_without_figures_has_a_page(client: Client) -> None:
    published = sae_rows.publish(figures={})
    assert "not measured" in get(client, f"/s/{published.sae.public_id}")
    Run.objects.update(summary={})
    assert "—" in get(client, f"/s/{published.sae.public_id}?sort=index")


def test_a_list_that_takes_too_long_says_to_narrow_it(client: Client, published: Stats, settings: Any) -> None:
    """A lock that another connection holds is as slow as a list can be."""
    settings.LIST_TIMEOUT_MS = 50
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("begin")
        cursor.execute(f"lock table latent_r{published.run.pk} in access exclusive mode")
        try:
            response = client.get(f"/s/{published.sae.public_id}/latents.json")
        finally:
            cursor.execute("rollback")
            other.close()
    assert response.status_code == 503 and "Narrow the filter" in response.json()["message"]


def test_the_page_costs_few_queries(client: Client, published: Stats) -> None:
    url = f"/s/{published.sae.public_id}"
    get(client, url)  # reads the vocabulary into the process
    for query, budget in (("", 7), ("?status=alive&dmin=1e-4", 9)):
        with CaptureQueriesContext(connection) as seen:
            get(client, url + query)
        asked = [q["sql"] for q in seen if q["sql"].split()[0].lower() in {"select", "set", "with"}]
        assert len(asked) <= budget, asked


def test_every_list_of_latents_reads_one_partition(published: Stats) -> None:
    sae_rows.publish(sae_rows.new_sae("other", slug="other"), seed=1)
    with CaptureQueriesContext(connection) as seen:
        latent_list.page(published.run.pk, Filter())
    (asked,) = [q["sql"] for q in seen if "order by" in q["sql"]]
    with connection.cursor() as cursor:
        cursor.execute("explain " + asked.replace("%", "%%"))
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert f"latent_r{published.run.pk}" in plan and plan.count(" on latent_r") == 1, plan
