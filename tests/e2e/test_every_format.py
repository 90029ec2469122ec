"""Every checkpoint that a library wrote, uploaded by a real browser, becomes pages with that library's own numbers.

The language model's residual stream holds, token by token, the rows that the libraries were given: what a page shows of
a latent that reads it is what the library computed, and nothing of ours stands between. Of other hook points pages show
what the stored SAE gives there, and it gives the library's numbers for the library's rows.
"""

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

from sae_backend import kept, store
from sae_backend.core import language_model
from sae_backend.core.language_model import LM
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.models import Dataset, Sae, SaeImport
from tests import formats
from tests.core.test_checkpoints import assert_equals
from tests.e2e import crew, uploading
from tests.e2e.uploading import Site

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = [pytest.mark.browser, pytest.mark.django_db]  # not transactional: nothing is flushed between tests
SLOW = 1000 * crew.PATIENCE
AHEAD = 6
RESIDUAL = "blocks.3.hook_resid_post"
OF_TRANSCODERS = {"hook_name": "blocks.1.attn.hook_z", "hook_name_out": "blocks.1.hook_mlp_out", "lm": "narrow"}
# What a person has to say where the files do not, or where these small language models differ from the SAE's own.
SAID: dict[str, dict[str, str]] = {
    "crosscoder_dictionary_learning/batchtopk_sae_normalized_hub": {"hook_name": RESIDUAL},
    "dictionary_learning/standard_no_config": {"hook_name": RESIDUAL},
    "gemma_scope/res": {"hook_name": RESIDUAL},
    "gemma_scope/att_hook_z": {"hook_name": "blocks.12.attn.hook_z", "lm": "gpt2-small"},
    "gemma_scope/transcoder": {"hook_name": "blocks.5.ln2.hook_normalized", "hook_name_out": "blocks.5.hook_mlp_out"},
    "openai/tied_relu": {"hook_name": RESIDUAL},
    "openai/topk_no_layernorm_ambiguous": {"hook_name": RESIDUAL, "input_norm": "none"},
    "openai/train_py_fastautoencoder": {"hook_name": RESIDUAL, "k": "16"},
    "openai/v5_topk_repo_state_dict": {"hook_name": RESIDUAL},
    "qwen_scope/topk": {"k": "16"},  # which its repository's name says
    # that write to 48 dimensions
    "saelens/jumprelu_transcoder": OF_TRANSCODERS,
    "saelens/skip_transcoder": OF_TRANSCODERS,
    "saelens/transcoder": OF_TRANSCODERS,
}


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with django_db_blocker.unblock():
        folder = tmp_path_factory.mktemp("uploads")
        with uploading.site(uploading.environment_of_workers(), folder) as made:
            yield made


class Sent:
    """Tabs in which checkpoints were sent: while the worker is at one, the browser sends the next."""

    def __init__(self, context: BrowserContext, site: Site, folder: Path, names: list[str]) -> None:
        self.context, self.site, self.folder, self.names = context, site, folder, names
        self.pages: dict[str, Page] = {}

    def page(self, name: str) -> Page:
        at = self.names.index(name)
        for each in self.names[at : at + AHEAD]:
            if each not in self.pages:
                self.pages[each] = self._send(each)
        return self.pages[name]

    def _send(self, name: str) -> Page:
        """As a person does: files, or the folder that they lie deep in."""
        page = self.context.new_page()
        page.set_default_timeout(SLOW)
        page.goto(f"{self.site.url}/upload")
        files = formats.files_of(name)
        if all(file.parent == formats.FIXTURES / name for file in files):
            page.locator("#fi").set_input_files(files)
        else:  # whose names say something
            ignored = shutil.ignore_patterns(formats.EXPECTED)
            page.locator("#fo").set_input_files(
                shutil.copytree(formats.FIXTURES / name, self.folder / name, ignore=ignored)
            )
        return page


@pytest.fixture(scope="module")
def sent(
    chromium: Browser, site: Site, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Sent]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    wanted = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    yield Sent(context, site, tmp_path_factory.mktemp("folders"), wanted)
    context.close()


@pytest.fixture
def page(sent: Sent, request: pytest.FixtureRequest) -> Iterator[Page]:
    page = sent.page(request.node.callspec.params["name"])
    page.bring_to_front()  # what polls does so where it is seen
    yield page
    page.close()


@pytest.mark.parametrize("name", formats.SUPPORTED)
def test_a_checkpoint_is_uploaded_and_its_pages_show_what_its_library_computes(
    name: str, site: Site, page: Page
) -> None:
    row = computed(page, name)
    assert row.run is not None and row.sae is not None
    site.workers.wait_for(lambda: crew.live(row.run))
    weights, wanted = kept.sae.__wrapped__(row.sae.pk), formats.expected(name)
    assert_equals(weights, wanted, 5e-3 if name in formats.HALF else 1e-6)
    lm = site.narrow if row.sae.lm_id == site.narrow.pk else site.lm
    acts = shown(row.sae, weights, wanted["acts"], lm.source)
    index = int(acts.max((0, 1)).argmax())
    data: dict[str, Any] = page.request.get(f"{site.url}/s/{row.sae.public_id}/{index}.json", timeout=SLOW).json()
    assert_shows(data["examples"], acts[:, :, index])


@pytest.mark.parametrize("name", formats.REFUSED)
def test_what_cannot_have_pages_is_refused_with_what_to_do(name: str, page: Page) -> None:
    assert not ready(page)
    assert formats.REFUSED[name] in page.get_by_role("alert").inner_text()


def computed(page: Page, name: str) -> SaeImport:
    """Compute as the page offers it, once what is missing is said; a page that waits for more fails the test."""
    is_ready = ready(page)
    if name in SAID:
        correct(page, SAID[name])
        is_ready = ready(page)
    assert is_ready, f"the page waits for a person: {asked(page)}"
    key = page.url.rpartition("/")[2]
    page.get_by_role("button", name="Compute").click()
    page.wait_for_url("**/jobs/*")
    return SaeImport.objects.select_related("sae", "run").get(key=key)


def ready(page: Page) -> bool:
    """Whether it can be computed, once a worker has looked at it."""
    refused = page.locator("[data-refused]")
    expect(page.locator("#choices[data-state=waiting]").or_(refused)).to_be_visible(timeout=SLOW)
    page.wait_for_load_state()  # all of the page: it is told in its middle, and what it offers stands below
    assert not refused.count(), refused.inner_text()
    return page.locator("[data-go]").count() == 1


def asked(page: Page) -> list[str]:
    return page.locator(".note.err, .checklist .er").all_inner_texts()


def correct(page: Page, said: dict[str, str]) -> None:
    folded = page.locator("details.more", has_text="More corrections")
    if folded.count() and not folded.get_attribute("open"):
        folded.locator("summary").click()
    for field, value in said.items():
        box = page.locator(f"#u-{field}")
        if box.evaluate("box => box.tagName") == "SELECT":
            box.select_option(label=value)
        else:
            box.fill(value)
    with page.expect_navigation():
        page.locator("[data-check]").click()


def shown(sae: Sae, weights: SparseAutoencoder, acts: torch.Tensor, source: str) -> npt.NDArray[np.float32]:
    """Of every latent on every counted token of the text, [context pos d_sae], in the language model's units."""
    tokens = torch.from_numpy(contexts(sae.lm_id).astype(np.int64))
    hidden = _lm(source).capture(tokens, sae.hook_name).flatten(0, 1)
    if "hook_resid" in sae.hook_name and sae.hook_name_out == "":
        dense = acts[tokens.flatten() % len(acts)]  # the library's own
    else:
        dense = weights.encode_dense(hidden)
    scale = weights.canonical_scale(hidden)[:, None] * weights.decoder_norm  # as docs/statistics.md says
    found: npt.NDArray[np.float32] = (dense * scale).reshape(*tokens.shape, -1).numpy()
    found[np.isin(tokens.numpy(), _lm(source).tokenizer.all_special_ids)] = 0
    return found


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
