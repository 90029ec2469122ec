"""Classes of logit effects and their token sets: on the page, as data, in filters and exports, and of older runs."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import numpy as np
import pytest
from django.db import connection
from django.test import Client

from browser.layer_chart import layers
from browser.logit_classes import CLASSES, class_name
from browser.queries.logit_meaning import effects, strongest
from sae_backend.models import Run
from tests import packers
from tests.browser import sae_rows
from tests.browser.latent_rows import ALIVE, PLAIN, Published, publish

pytestmark = pytest.mark.django_db(transaction=True)
SETS = {
    "version": 1, "d_vocab": 4097,
    "sets": [
        {"name": name, "means": f"{name} alone", "size": size}
        for name, size in (("digits", 64), ("line break", 1024), ("none", 0))
    ],
}  # fmt: skip


@pytest.fixture
def published() -> Published:
    return publish()


def told(published: Published, z: list[float], index: int = ALIVE, **moments: float) -> None:
    blob = packers.pack_enrichment(np.array(z, np.float32))
    run = published.run
    Run.objects.filter(pk=run.pk).update(summary={**run.summary, "token_sets": SETS})
    with connection.cursor() as cursor:
        cursor.execute("update latent_page set enrichment = %s where run_id = %s and index = %s", [blob, run.pk, index])
        for name, value in moments.items():
            cursor.execute(f"update latent set {name} = %s where run_id = %s and index = %s", [value, run.pk, index])


def text(client: Client, url: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", client.get(url).content.decode()).split())


@pytest.mark.parametrize(
    ("kurtosis", "skewness", "expected"),
    [
        (9.1, 2.3, "prediction"), (4.0, 0.5, "prediction"), (4.0, 0.49, None), (3.99, 0.5, None),
        (9.1, -2.3, "suppression"), (4.0, -0.5, "suppression"), (2.8, 0.0, "partition"), (2.81, 0.0, None),
        (None, None, None),
    ],
)  # fmt: skip
def test_a_class_is_told_by_two_moments(kurtosis: float | None, skewness: float | None, expected: str | None) -> None:
    assert class_name({"logit_kurtosis": kurtosis, "logit_skewness": skewness}) == expected


def test_no_latent_is_in_two_classes() -> None:
    for kurtosis in np.linspace(1, 10, 91):
        for skewness in np.linspace(-3, 3, 61):
            values = {"logit_kurtosis": kurtosis, "logit_skewness": skewness}
            assert sum(of.has(values) for of in CLASSES) <= 1


def test_the_page_says_the_class_with_its_reason(client: Client, published: Published) -> None:
    reason = "Prediction kurtosis 8.10, skewness 1.90: promotes a few tokens far above the rest"
    assert reason in text(client, published.url(ALIVE))
    told(published, [], logit_kurtosis=3.2, logit_skewness=0.1)
    assert "No class kurtosis 3.20, skewness 0.100: neither a few tokens" in text(client, published.url(ALIVE))


def test_sets_that_stand_out_are_shown_strongest_first_and_all_are_data(client: Client, published: Published) -> None:
    told(published, [8.0, -32.0, np.nan])
    page = text(client, published.url(ALIVE))
    shift = -32 * np.sqrt((4097 - 1024) / (1024 * 4096))
    assert page.index("line break") < page.index("digits") and "none alone" not in page
    assert f"{shift:.2f}".replace("-", "−") in page and "−32" in page and "+8" in page and "2 sets tested" in page
    data = client.get(published.url(ALIVE, ".json")).json()["logits"]
    assert data["class"] == "prediction"
    of_lines = {"set": "line break", "tokens": 1024, "z": -32.0, "shift": pytest.approx(shift, 1e-4)}
    assert data["token_sets"][1] == of_lines
    assert data["token_sets"][2] == {"set": "none", "tokens": 0, "z": None, "shift": None}


def test_where_no_set_stands_out_the_page_says_so(client: Client, published: Published) -> None:
    told(published, [5.9, -5.9, np.nan])
    assert "None of 2 sets stands out" in text(client, published.url(ALIVE))


def test_a_run_from_before_has_a_class_and_no_sets(client: Client, published: Published) -> None:
    told(published, [9.0], PLAIN)
    page = client.get(published.url(ALIVE)).content.decode()
    assert "Prediction" in page and "Token sets" not in page
    assert client.get(published.url(ALIVE, ".json")).json()["logits"]["token_sets"] is None
    Run.objects.filter(pk=published.run.pk).update(summary=published.run.summary)
    assert "Token sets" not in client.get(published.url(PLAIN)).content.decode()


def test_at_most_five_sets_are_shown_with_bars_by_their_mean() -> None:
    run = Run(summary={"token_sets": {**SETS, "sets": [{"name": str(i), "means": "", "size": 64} for i in range(9)]}})
    found = strongest(effects(run, np.arange(4, 13, dtype=np.float32)))
    assert [e.name for e in found] == ["8", "7", "6", "5", "4"]
    assert [e.width for e in found] == [100, 92, 83, 75, 67]


def test_every_moment_says_beside_it_how_it_is_read(client: Client, published: Published) -> None:
    page = client.get(published.url(ALIVE)).content.decode()
    for section, n in (("h-shape", 5), ("h-weights", 3)):
        (part,) = re.findall(rf'<h2 id="{section}">.*?</section>', page, re.S)
        assert part.count("<small>") == n
    assert "mostly restates density</small>" in page


def walk(client: Client, url: str) -> list[dict[str, Any]]:
    data = client.get(url).json()
    assert data["ignored"] == []
    return data["latents"] + (walk(client, data["next"]) if data["next"] else [])


@pytest.mark.parametrize("packed", [True, False])
def test_a_table_is_filtered_by_class_and_exported_with_it(client: Client, packed: bool) -> None:
    published = sae_rows.publish()
    with connection.cursor() as cursor:
        cursor.execute("update latent set logit_kurtosis = 1.5 + index % 9, logit_skewness = (index % 5 - 2) / 2.0")
        cursor.execute("delete from latent_column")
    if packed:
        from sae_backend import packed_columns, store

        packed_columns.write(published.run.pk, f"latent_r{published.run.pk}", store.SORTABLE, published.sae.d_sae)
    at = f"/s/{published.sae.public_id}"
    whole = walk(client, f"{at}/latents.json?sort=index")
    assert {row["logit_class"] for row in whole} == {"prediction", "suppression", "partition", None}
    for of in CLASSES:
        expected = [row["index"] for row in whole if row["logit_class"] == of.name]
        assert [row["index"] for row in walk(client, f"{at}/latents.json?sort=index&class={of.name}")] == expected
        lines = b"".join(client.get(f"{at}/latents.csv?class={of.name}").streaming_content).decode()
        assert [row["logit_class"] for row in csv.DictReader(io.StringIO(lines))] == [of.name] * len(expected)
    page = client.get(f"{at}?class=partition").content.decode()
    assert '<option value="partition"' in page and "latents match" in page
    assert "class=other" in client.get(f"{at}?class=other").content.decode()


LAYERS = {
    "tokens": 500,
    "layers": [{"hook_name": str(i), "plain": 3.0 * 4**i, "rotated": 3.0} for i in range(4)],
}


@pytest.mark.parametrize(
    ("hook_name", "here"),
    [
        ("blocks.0.hook_resid_pre", 0), ("blocks.1.hook_resid_pre", 33), ("blocks.0.hook_resid_post", 33),
        ("blocks.2.hook_resid_post", 100), ("blocks.1.hook_mlp_out", 50), ("hook_embed", 0), ("elsewhere", None),
        ("blocks.9.hook_resid_post", None),
    ],
)  # fmt: skip
def test_the_saes_place_is_marked_among_the_layers(hook_name: str, here: int | None) -> None:
    chart = layers({"basis_by_layer": LAYERS}, hook_name)
    assert chart is not None and chart.here == here
    heights = [float(point.split()[1]) for point in chart.plain[1:].split("L")]
    steps = np.diff(heights)  # equal on a logarithmic axis, upwards
    assert steps.max() < 0 and steps == pytest.approx(steps.mean(), abs=0.1)
    assert "most 192 after block 2" in chart.says


def test_a_page_shows_the_layers_and_does_without_them(client: Client, published: Published) -> None:
    at = f"/s/{published.sae.public_id}"
    assert "Basis kurtosis by layer" not in client.get(at).content.decode()
    Run.objects.filter(pk=published.run.pk).update(summary={**published.run.summary, "basis_by_layer": LAYERS})
    assert "Basis kurtosis by layer" in client.get(at).content.decode()
    assert client.get(f"{at}.json").json()["summary"]["basis_by_layer"]["layers"][3]["plain"] == 192
