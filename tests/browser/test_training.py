"""An SAE through training: three planted steps, in which a latent is born, one dies, and one turns by a known angle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from safetensors.torch import save_file

from browser.queries import training
from browser.queries.saes import resolve
from sae_backend import aligning, managing, series, store
from sae_backend.core.alignment import row_cosines
from sae_backend.models import Sae, SeriesCosine
from tests.browser import sae_rows

BORN, DIES, TURNS = 100, 101, 102
STEPS = (10, 200, 3000)
ANGLE = math.radians(40)  # at the first step; half of it at the second
D_IN = 16


@pytest.fixture
def planted(transactional_db: None, tmp_path: Path, settings: Any) -> list[Sae]:
    """Three published checkpoints with their weights stored, as imports store them."""
    settings.OPEN_TO_ALL = True
    return [_step(i, tmp_path) for i in range(3)]


def _step(i: int, folder: Path) -> Sae:
    sae = sae_rows.new_sae(f"step {STEPS[i]}", slug=f"step-{i}", path=_weights(i, folder))
    values = sae_rows.statistics(sae.d_sae)
    dead = [BORN] if i == 0 else [DIES] if i == 2 else []
    for latent in dead:
        for name in ("firings", "density", "status"):
            values[name][latent] = 0
    run = sae_rows.new_run(sae)
    sae_rows.start(run)
    sae_rows.do_contexts(run)
    sae_rows.load(run, values)
    store.seal(run.pk)
    store.publish(run.pk, {**sae_rows.FIGURES, "fvu": 0.3 / (i + 1)})
    Sae.objects.filter(pk=sae.pk).update(series="planted", step=STEPS[i])
    sae.refresh_from_db()
    return sae


def _weights(i: int, folder: Path) -> str:
    """Every row is a unit vector of its own; that of TURNS turns from step to step, 7's is zero at first."""
    from sae_backend import storage

    g = torch.Generator().manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(sae_rows.D_SAE, D_IN, generator=g), dim=1)
    angle = ANGLE * (1 - i / 2)
    W_dec[TURNS] = torch.zeros(D_IN)
    W_dec[TURNS, :2] = torch.tensor([math.cos(angle), math.sin(angle)])
    W_dec[8] *= 1 + i  # a length is no direction
    if i == 0:
        W_dec[7] = 0
    there = folder / str(i)
    there.mkdir()
    biases = {"b_enc": torch.zeros(len(W_dec)), "b_dec": torch.zeros(D_IN)}
    save_file({"W_enc": W_dec.T.contiguous(), "W_dec": W_dec, **biases}, there / "sae_weights.safetensors")
    (there / "cfg.json").write_text(
        '{"architecture": "topk", "k": 8, "d_in": 16, "d_sae": 300, "dtype": "float32", "apply_b_dec_to_input": false,'
        ' "normalize_activations": "none", "metadata": {"hook_name": "blocks.1.hook_resid_post"}}'
    )
    storage.current().keep(f"checkpoints/planted{i}", {path.name: path for path in there.iterdir()})
    return f"checkpoints/planted{i}"


def test_births_and_deaths_are_what_was_planted(client: Client, planted: list[Sae]) -> None:
    found = client.get(f"/s/{planted[1].public_id}/training.json").json()
    assert [(s["step"], s["born"], s["died"], s["fvu"]) for s in found["steps"]] == [
        (10, None, None, 0.3), (200, 1, 0, 0.15), (3000, 0, 1, 0.3 / 3),
    ]  # fmt: skip
    assert [s["counts"]["dead"] for s in found["steps"]] == [21, 20, 21]
    page = client.get(f"/s/{planted[2].public_id}/training").content.decode()
    assert f'href="/s/{planted[1].public_id}/{BORN}/training"' in page
    assert f'href="/s/{planted[2].public_id}/{DIES}/training"' in page


def test_cosines_to_the_final_direction_are_those_of_the_planted_angle(client: Client, planted: list[Sae]) -> None:
    before = client.get(f"/s/{planted[0].public_id}/{TURNS}/training.json").json()["steps"]
    assert [s["cos"] for s in before] == [None, None, 1.0]
    aligning.align(planted[0].pk)
    aligning.align(planted[1].pk)  # as often as one likes
    assert SeriesCosine.objects.count() == 2
    steps = client.get(f"/s/{planted[0].public_id}/{TURNS}/training.json").json()["steps"]
    assert [s["cos"] for s in steps] == pytest.approx([math.cos(ANGLE), math.cos(ANGLE / 2), 1.0], abs=1e-6)
    zero, still = (client.get(f"/s/{planted[0].public_id}/{i}/training.json").json()["steps"] for i in (7, 8))
    assert [s["cos"] for s in zero] == [None, pytest.approx(1), 1.0]
    assert [s["cos"] for s in still] == pytest.approx([1, 1, 1])
    centiles = client.get(f"/s/{planted[0].public_id}/training.json").json()["steps"][0]["cos_centiles"]
    assert centiles == pytest.approx([1] * 5, abs=1e-6)  # all but one


def test_a_latents_page_has_it_at_every_step(client: Client, planted: list[Sae]) -> None:
    aligning.align(planted[0].pk)
    page = client.get(f"/s/{planted[1].public_id}/{DIES}").content.decode()
    section = page.partition('id="training"')[2].partition("</section>")[0]
    for other in (planted[0], planted[2]):
        assert f'href="/s/{other.public_id}/{DIES}"' in section
    assert "dead" in section.lower()
    steps = client.get(f"/s/{planted[1].public_id}/{DIES}/training.json").json()["steps"]
    assert [s["status"] for s in steps][2] == "dead" and steps[0]["status"] != "dead"
    assert client.get(f"/s/{planted[1].public_id}/{DIES}/training").status_code == 200
    assert client.get(f"/s/{planted[1].public_id}/300/training").status_code == 404


def test_it_costs_one_query_and_none_outside_a_series(planted: list[Sae]) -> None:
    inside, outside = resolve(planted[0].public_id), resolve(sae_rows.publish().sae.public_id)
    with CaptureQueriesContext(connection) as asked:
        assert training.latent(inside, 5) is not None
    assert len(asked) == 1
    with CaptureQueriesContext(connection) as asked:
        assert training.latent(outside, 5) is None
    assert not asked


def test_a_new_final_step_is_what_others_are_compared_with(client: Client, planted: list[Sae]) -> None:
    aligning.align(planted[0].pk)
    etag = client.get(f"/s/{planted[0].public_id}/{TURNS}")["ETag"]
    series.assign(planted[2], "", None)
    before = client.get(f"/s/{planted[0].public_id}/{TURNS}/training.json").json()["steps"]
    assert [s["cos"] for s in before] == [None, 1.0]  # a cosine to what is not the final one any more is not shown
    assert client.get(f"/s/{planted[0].public_id}/training.json").json()["steps"][0]["cos_centiles"] is None
    aligning.align(planted[0].pk)
    steps = client.get(f"/s/{planted[0].public_id}/{TURNS}/training.json").json()["steps"]
    assert [s["cos"] for s in steps] == pytest.approx([math.cos(ANGLE / 2), 1.0], abs=1e-6)
    assert client.get(f"/s/{planted[0].public_id}/{TURNS}")["ETag"] != etag
    assert client.get(f"/s/{planted[2].public_id}/training").status_code == 404
    managing.delete(planted[1])
    assert not SeriesCosine.objects.exists()


def test_a_series_is_set_in_the_settings(client: Client, planted: list[Sae]) -> None:
    at = f"/s/{planted[2].public_id}/series.json"
    assert client.post(at, {"series": "planted"}, content_type="application/json").status_code == 400
    said = client.post(at, {"series": "other", "step": 7}, content_type="application/json").json()["sae"]
    assert (said["series"], said["step"]) == ("other", 7)
    assert [s["step"] for s in client.get(f"/s/{planted[0].public_id}/training.json").json()["steps"]] == [10, 200]
    assert 'value="other"' in client.get(f"/s/{planted[2].public_id}/settings").content.decode()


def test_pages_without_packed_columns_or_runs_leave_births_open(client: Client, planted: list[Sae]) -> None:
    connection.cursor().execute("delete from latent_column where run_id = %s", [planted[1].current_run_id])
    waiting = sae_rows.new_sae("waiting", slug="waiting", series="planted", step=9000)
    training._changes.cache_clear()
    steps = client.get(f"/s/{planted[0].public_id}/training.json").json()["steps"]
    assert [(s["born"], s["died"]) for s in steps] == [(None, None)] * 4
    assert steps[3]["sae"] == waiting.public_id
    assert "not computed yet" in client.get(f"/s/{planted[0].public_id}/training").content.decode()


def test_rows_are_compared_one_by_one() -> None:
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    assert np.allclose(row_cosines(a, b), [math.sqrt(0.5), -1, np.nan], equal_nan=True)
    with pytest.raises(ValueError, match="a series has one shape"):
        row_cosines(a, b[:2])


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("resid_post_2_topk32_4096_ckpts/step_00087.pt", ("resid_post_2_topk32_4096", 87)),
        ("/data/sae/checkpoint_20000", ("sae", 20000)),
        ("gpt2-sae_step_500", ("gpt2-sae", 500)),
        ("gpt2-sae-step=20k/sae.safetensors", None),
        ("runs/abc123/final_1000000", ("abc123", 1000000)),
        ("checkpoints/abc123/50000000", ("abc123", 50000000)),
        ("out/resid_8/trainer_0/checkpoints/ae_1000.pt", ("resid_8/trainer_0", 1000)),
        ("topk_20M_tokens", None),
        ("layer_12/width_16k/average_l0_82", None),
        ("ae.pt", None),
        ("step_5", None),
        ("gpt2-sae_step_999999999999999M", None),
        ("ae_1000.pt", None),
        ("", None),
    ],
)
def test_steps_are_read_from_the_names_that_training_libraries_write(path: str, told: tuple[str, int] | None) -> None:
    assert series.recognised(path) == told


def test_a_pinned_page_says_nothing_of_other_steps(client: Client, planted: list[Sae]) -> None:
    sae = planted[1]
    pinned, live = (client.get(f"/s/{ref}/{BORN}").content.decode() for ref in (f"{sae.public_id}@r1", sae.public_id))
    assert 'id="training"' in live and 'id="training"' not in pinned
    etag = client.get(f"/s/{sae.public_id}@r1/{BORN}")["ETag"]
    series.changed(planted[0])
    assert client.get(f"/s/{sae.public_id}@r1/{BORN}")["ETag"] == etag
