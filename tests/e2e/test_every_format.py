"""Every supported checkpoint, uploaded by a real browser, becomes pages of latents with the right activations."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from playwright.sync_api import expect

from sae_backend import store
from sae_backend.core import checkpoints, language_model
from sae_backend.core.language_model import LM
from sae_backend.models import Dataset, Sae, SaeImport
from tests.e2e import crew, uploading
from tests.e2e.uploading import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db]  # not transactional: nothing is flushed between tests
FIXTURES = Path(__file__).parents[1] / "fixtures"
NOT_A_CHECKPOINT = {"expected.npz", "meta.json"}
SLOW = 1000 * crew.PATIENCE
RESIDUAL = "blocks.3.hook_resid_post"
# What a person has to say where the files do not, or where these small language models differ from the SAE's own.
SAID: dict[str, dict[str, str]] = {
    "crosscoder_dictionary_learning/batchtopk_sae_normalized_hub": {"hook_name": RESIDUAL},
    "dictionary_learning/standard_no_config": {"hook_name": RESIDUAL},
    "gemma_scope/res": {"hook_name": RESIDUAL},
    "openai/tied_relu": {"hook_name": RESIDUAL},
    "openai/train_py_fastautoencoder": {"hook_name": RESIDUAL, "k": "16"},
    "openai/v5_topk_repo_state_dict": {"hook_name": RESIDUAL},
    "qwen_scope/topk": {"k": "16"},  # which its repository's name says
    "saelens/skip_transcoder": {"hook_name": "blocks.1.attn.hook_z", "hook_name_out": "blocks.1.hook_mlp_out"},
    "saelens/transcoder": {"hook_name": "blocks.1.attn.hook_z", "hook_name_out": "blocks.1.hook_mlp_out"},
}
REFUSED = "saelens_legacy/sae_training_2024-03_pkl"  # a raw pickle
NARROW = {"saelens/skip_transcoder", "saelens/transcoder"}  # which write to 48 dimensions


def files_of(name: str) -> list[Path]:
    return [p for p in sorted((FIXTURES / name).rglob("*")) if p.is_file() and p.name not in NOT_A_CHECKPOINT]


SUPPORTED = [
    name
    for path in sorted(FIXTURES.glob("*/*/expected.npz"))
    if files_of(name := path.parent.relative_to(FIXTURES).as_posix()) and name != REFUSED
]


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with django_db_blocker.unblock():
        folder = tmp_path_factory.mktemp("uploads")
        with uploading.site(uploading.environment_of_workers(), folder) as made:
            yield made


@pytest.fixture(scope="module")
def page(chromium: Browser, site: Site) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(SLOW)
    yield page
    context.close()


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_checkpoint_is_uploaded_and_its_latents_show_what_the_weights_give(
    name: str, site: Site, page: Page, tmp_path: Path
) -> None:
    row = upload(page, site, name, tmp_path)
    assert row.run is not None and row.sae is not None
    site.workers.wait_for(lambda: crew.live(row.run))
    lm = site.narrow if name in NARROW else site.lm
    acts = activations(row.sae, name, lm.source)
    index = int(acts.max((0, 1)).argmax())
    data: dict[str, Any] = page.request.get(f"{site.url}/s/{row.sae.public_id}/{index}.json").json()
    assert_shows(data["examples"], acts[:, :, index])


def test_a_raw_pickle_is_refused_with_what_to_do(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/upload")
    page.locator("#fi").set_input_files(files_of(REFUSED))
    page.wait_for_url("**/imports/*")
    expect(page.get_by_text("can run code when read; save the weights as safetensors instead")).to_be_visible()


def upload(page: Page, site: Site, name: str, folder: Path) -> SaeImport:
    """By the page, as a person does: files, or the folder that they lie deep in, what is missing, Compute."""
    page.goto(f"{site.url}/upload")
    files = files_of(name)
    if all(file.parent == FIXTURES / name for file in files):
        page.locator("#fi").set_input_files(files)
    else:  # whose names say something
        whole = shutil.copytree(FIXTURES / name, folder / name, ignore=shutil.ignore_patterns(*NOT_A_CHECKPOINT))
        page.locator("#fo").set_input_files(whole)
    page.wait_for_url("**/imports/*")
    expect(page.locator("#choices[data-state=waiting]")).to_be_visible(timeout=SLOW)
    said = SAID.get(name, {}) | ({"lm": "narrow"} if name in NARROW else {})
    if said:
        correct(page, said)
    elif not page.locator("[data-go]").count():  # no language model fits without doubt
        correct(page, {"lm": "gpt2-small"})
    page.get_by_role("button", name="Compute").click()
    page.wait_for_url("**/jobs/*")
    return site.last_import()


def correct(page: Page, said: dict[str, str]) -> None:
    folded = page.locator("details.more")
    if folded.count() and not folded.get_attribute("open"):
        folded.locator("summary").click()
    for field, value in said.items():
        if field == "lm":
            page.locator("#u-lm").select_option(label=value)
        else:
            page.locator(f"#u-{field}").fill(value)
    page.locator("[data-check]").click()
    expect(page.locator("#choices[data-checked]")).to_be_visible(timeout=SLOW)


def activations(sae: Sae, name: str, source: str) -> npt.NDArray[np.float32]:
    """Of every latent on every counted token of the text, [context pos d_sae], by the library's equations."""
    weights = checkpoints.load(Path(FIXTURES / name), **sae.metadata["overrides"])
    tokens = torch.from_numpy(contexts(sae.lm_id).astype(np.int64))
    with torch.no_grad():
        hidden = _lm(source).capture(tokens, sae.hook_name).flatten(0, 1)
        scale = weights.canonical_scale(hidden)[:, None] * weights.decoder_norm  # as docs/statistics.md says
        dense = weights.encode_dense(hidden) * scale
    acts: npt.NDArray[np.float32] = np.maximum(dense.reshape(*tokens.shape, -1).numpy(), 0)
    acts[np.isin(tokens.numpy(), _lm(source).tokenizer.all_special_ids)] = 0
    return acts


@cache
def _lm(source: str) -> LM:
    return language_model.load(source, torch.float32, "cpu")


@cache
def contexts(lm_id: int) -> npt.NDArray[np.uint32]:
    dataset = Dataset.objects.get(lm=lm_id)
    return store.read_contexts(dataset, 0, dataset.n_contexts)


def assert_shows(examples: list[dict[str, Any]], acts: npt.NDArray[np.float32]) -> None:
    """Every example has its activations, and the first is the strongest token of all."""
    top = [example for example in examples if example["interval"] == 0]
    assert top and top[0]["peak_act"] == pytest.approx(float(acts.max()), rel=2e-3)
    for example in examples:
        expected, shown = acts[example["context"]], np.array(example["acts"])
        assert np.allclose(shown, expected, rtol=4e-3, atol=2e-3 * acts.max()), example["context"]
