"""Uploading by a real browser: dropped, packed, interrupted, reloaded, corrected, by keyboard and without scripts."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from playwright.sync_api import expect
from safetensors.torch import save_file

from sae_backend.models import SaeImport, UploadFile
from tests.core import small
from tests.e2e import crew, uploading
from tests.e2e.uploading import Site
from tests.looking import sideways

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Route

pytestmark = [pytest.mark.browser, pytest.mark.django_db]  # not transactional: nothing is flushed between tests
FIXTURES = Path(__file__).parents[1] / "fixtures"
TOPK = FIXTURES / "saelens" / "topk"
SLOW = 1000 * crew.PATIENCE
PIECE = 8 << 20
DROP = """files => {
    const data = new DataTransfer();
    for (const [name, text] of files)
        data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, { lastModified: 1 }));
    return data;
}"""


@pytest.fixture(scope="module")
def site(django_db_setup: None, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with django_db_blocker.unblock():
        folder = tmp_path_factory.mktemp("uploads")
        environment = {**uploading.environment_of_workers(), "SOURCE_ROOTS": str(folder)}
        with uploading.site(environment, folder) as made:
            yield made


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    faults: list[str] = []
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: dialog.accept())
    yield page
    assert faults == []


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A checkpoint of three pieces."""
    weights = {"W_enc": torch.randn(64, 36_000), "W_dec": torch.randn(36_000, 64), "b_dec": torch.zeros(64)}
    shutil.copy(FIXTURES / "saelens/standard/cfg.json", tmp_path / "cfg.json")
    cfg = (tmp_path / "cfg.json").read_text()
    (tmp_path / "cfg.json").write_text(re.sub(r'"d_sae": \d+', '"d_sae": 36000', cfg))
    save_file({**weights, "b_enc": torch.zeros(36_000)}, tmp_path / "sae_weights.safetensors")
    return tmp_path


def checkpoint(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "expected.npz")


def drop(page: Page, files: list[Path]) -> None:
    """As a script drops them onto the page."""
    named = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]
    page.dispatch_event("[data-drop]", "drop", {"dataTransfer": page.evaluate_handle(DROP, named)})


def drop_here(page: Page, path: Path) -> None:
    """As the operating system drops a file or a folder anywhere onto the window."""
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 400, "data": data})


def checked(page: Page) -> None:
    page.wait_for_url("**/imports/*")
    expect(page.locator("#choices[data-state=waiting]")).to_be_visible(timeout=SLOW)
    page.wait_for_load_state()  # its scripts too: what is typed before them is not saved


def compute(page: Page, site: Site) -> SaeImport:
    page.get_by_role("button", name="Compute").click()
    page.wait_for_url("**/jobs/*")
    expect(page.get_by_role("heading", name="Computed")).to_be_visible(timeout=SLOW)
    return site.last_import()


def offsets(page: Page) -> list[int]:
    """Of every piece that is sent from now on."""
    sent: list[int] = []
    page.on("request", lambda r: sent.append(int(r.headers["upload-offset"])) if r.method == "PATCH" else None)
    return sent


# ---- ways in -----------------------------------------------------------------------------------------


def test_several_dropped_files_are_checked_computed_and_lead_to_the_sae(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/upload")
    drop(page, checkpoint(TOPK))
    checked(page)
    checks = page.locator(".checklist")
    for words in ("Passed: Shapes", "Passed: Hook point", "Trial run", "Already here?"):
        expect(checks.get_by_text(words, exact=False).first).to_be_visible()
    expect(page.locator("#u-hook_name")).to_have_attribute("placeholder", "blocks.3.hook_resid_post")
    row = compute(page, site)
    page.get_by_role("link", name="Open the SAE").click()
    assert row.sae is not None
    expect(page).to_have_url(f"{site.url}/s/{row.sae.public_id}")
    page.goto(f"{site.url}/imports/{row.key}")
    expect(page).to_have_url(f"{site.url}/jobs/{row.run_id}")


def test_archives_and_a_folder_are_read_as_the_files_in_them(site: Site, page: Page, tmp_path: Path) -> None:
    for kind in ("zip", "gztar"):
        packed = shutil.make_archive(str(tmp_path / "packed"), kind, TOPK.parent, "topk")
        page.goto(f"{site.url}/upload")
        drop(page, [Path(packed)])
        checked(page)
        expect(page.get_by_text("256 latents of a hidden state 64 wide")).to_be_visible()
    folder = shutil.copytree(FIXTURES / "saelens/standard", tmp_path / "my-sae")
    page.goto(f"{site.url}/upload")
    page.locator("#fo").set_input_files(folder)
    checked(page)
    names = set(site.last_import().files.values_list("name", flat=True))
    assert {"my-sae/cfg.json", "my-sae/sae_weights.safetensors"} <= names
    expect(page.get_by_role("button", name="Compute")).to_be_enabled()


def test_a_folder_dropped_on_the_home_page_is_on_its_way_at_once(site: Site, page: Page, tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("expected.npz")
    folder = shutil.copytree(FIXTURES / "sparsify/topk", tmp_path / "mine", ignore=ignored)
    page.goto(site.url)
    drop_here(page, folder)
    page.wait_for_url("**/imports/*")
    checked(page)
    names = set(site.last_import().files.values_list("name", flat=True))
    assert {"mine/layers.3/cfg.json", "mine/layers.3/sae.safetensors"} <= names
    page.go_back()
    expect(page.get_by_role("heading", name="Sparse autoencoders")).to_be_visible()


def test_a_language_model_and_text_are_added_by_the_forms_and_an_sae_of_it_computed(
    site: Site, page: Page, settings: Any, tmp_path: Path
) -> None:
    folder = small.save_lm(site.folder / "added", "gpt_neox", hidden_size=64, num_hidden_layers=5)
    settings.SOURCE_ROOTS = [str(site.folder)]
    page.goto(f"{site.url}/models#add")
    page.get_by_label("Folder of the server").fill(str(folder))
    page.get_by_label("Name (optional)", exact=True).fill("pythia-tiny")
    page.get_by_role("button", name="Add the language model").click()
    page.get_by_role("link", name="Open pythia-tiny").click(timeout=SLOW)
    expect(page.get_by_text("GPTNeoXForCausalLM")).to_be_visible()
    page.get_by_role("link", name="Add text for it").click()
    (tmp_path / "moon.jsonl").write_text(json.dumps({"body": "def half(x):\n    return x / 2\n" * 40}) + "\n")
    page.get_by_label("File", exact=True).set_input_files(tmp_path / "moon.jsonl")
    page.get_by_label("Language model").select_option(label="pythia-tiny")
    page.get_by_label("Tokens in a context").fill("32")
    page.get_by_role("button", name="Add the data set").click()
    page.get_by_role("link", name="Open moon.jsonl").click(timeout=SLOW)
    expect(page.get_by_role("heading", name="moon.jsonl")).to_be_visible()
    page.goto(f"{site.url}/upload")
    drop(page, checkpoint(FIXTURES / "saelens/standard_bf16"))
    checked(page)
    page.locator("#u-lm").select_option(label="pythia-tiny")
    page.get_by_role("button", name="Check again").click()
    expect(page.locator("#choices[data-checked]")).to_be_visible(timeout=SLOW)
    expect(page.locator("#u-dataset")).to_contain_text("moon.jsonl")
    row = compute(page, site)
    assert row.run is not None and row.run.dataset.name == "moon.jsonl" and row.run.dataset.lm.name == "pythia-tiny"


def test_by_keyboard_alone(site: Site, page: Page) -> None:
    page.on("filechooser", lambda _: None)  # asked for long before: on a full machine Enter may overtake the asking
    page.goto(f"{site.url}/upload")
    tab_to(page, "fi")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(checkpoint(FIXTURES / "saelens/jumprelu"))
    checked(page)
    tab_to(page, "u-name")
    page.keyboard.press("Control+A")
    page.keyboard.type("by keyboard")
    expect(page.get_by_text("saved", exact=True)).to_be_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('[data-go]')"):
            break
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/*")
    assert site.last_import().name == "by keyboard"


def tab_to(page: Page, key: str) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == key:
            return
    raise AssertionError(f"Tab never comes to {key}")


def test_without_scripts_a_form_sends_the_files_and_links_lead_on(site: Site, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.goto(f"{site.url}/upload")
    page.locator("input[name=file]").set_input_files(checkpoint(FIXTURES / "saelens/gated"))
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Check", exact=True).click()
    expect(page.get_by_role("button", name="Compute")).to_be_visible(timeout=SLOW)  # the page refreshes itself
    page.get_by_role("button", name="Compute").click()
    page.wait_for_url("**/jobs/*")
    expect(page.get_by_role("heading", name="Computed")).to_be_visible(timeout=SLOW)
    context.close()


# ---- what goes wrong ---------------------------------------------------------------------------------


def test_a_connection_that_is_lost_goes_on_where_it_stopped(site: Site, page: Page, large: Path) -> None:
    failures, said = 0, False

    def second_piece_fails(route: Route) -> None:
        nonlocal failures
        second = route.request.method == "PATCH" and route.request.headers["upload-offset"] == str(PIECE)
        lost = second and (failures < 2 or not said)
        failures += lost
        route.abort("connectionreset") if lost else route.continue_()

    page.goto(f"{site.url}/upload")
    page.route("**/imports/*/files/*", second_piece_fails)
    sent = offsets(page)
    page.locator("#fi").set_input_files(checkpoint(large))
    expect(page.get_by_text("The connection is lost; it goes on by itself")).to_be_visible(timeout=SLOW)
    said = True
    checked(page)
    assert failures >= 2 and sent.count(PIECE) == failures + 1 and sent.count(2 * PIECE) == 1
    file = UploadFile.objects.get(of=site.last_import(), name="sae_weights.safetensors")
    assert file.complete and file.size == (large / file.name).stat().st_size


def test_an_upload_is_paused_left_and_gone_on_with_in_another_tab(
    site: Site, page: Page, context: BrowserContext, large: Path
) -> None:
    page.goto(f"{site.url}/upload")
    page.route("**/imports/*/files/*", lambda route: stuck(route, PIECE))
    weights = large / "sae_weights.safetensors"
    page.locator("#fi").set_input_files(weights)
    page.wait_for_url("**/imports/*")
    until_a_piece_came(page, site.last_import())
    page.get_by_role("button", name="Pause sae_weights").click()
    expect(page.get_by_text("Paused.")).to_be_visible()
    address = page.url
    other = context.new_page()
    other.goto(address)
    expect(other.get_by_text("Not all of it has arrived")).to_be_visible()
    other.reload()
    sent = offsets(other)
    other.locator("#fi").set_input_files(weights)
    expect(other.locator("li[data-complete]")).to_be_visible(timeout=SLOW)
    assert sent and min(sent) >= PIECE - 1
    other.wait_for_url(address)


def until_a_piece_came(page: Page, row: SaeImport) -> None:
    """Waiting in Playwright, whose routes are served only then."""
    for _ in range(int(SLOW) // 20):
        if UploadFile.objects.filter(of=row, received__gte=PIECE).exists():
            return
        page.wait_for_timeout(20)
    raise AssertionError("no piece came")


def stuck(route: Route, at: int) -> None:
    """Let pieces before `at` through and hold the others."""
    later = route.request.method == "PATCH" and int(route.request.headers["upload-offset"]) >= at
    if not later:
        route.continue_()


def test_what_cannot_be_read_is_said_and_the_right_file_may_follow(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/upload")
    page.locator("#fi").set_input_files(FIXTURES / "bad/torch/whole_module.pt")
    checked(page)
    alert = page.get_by_role("alert")
    expect(alert).to_be_visible()
    assert len(alert.inner_text()) > 20 and "Traceback" not in alert.inner_text()
    with page.expect_navigation():  # a file chosen before the page is fetched anew is lost with the old one
        page.get_by_role("button", name="Remove whole_module.pt").click()
    expect(page.get_by_text("whole_module.pt")).to_have_count(0)
    page.locator("#fi").set_input_files(checkpoint(FIXTURES / "saelens/standard_layer_norm"))
    expect(page.get_by_role("button", name="Compute")).to_be_visible(timeout=SLOW)


def test_a_wrong_field_is_refused_with_a_sentence_corrected_and_checked_again(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/upload")
    page.locator("#fi").set_input_files(checkpoint(TOPK))
    checked(page)
    go = page.get_by_role("button", name="Compute")
    for field, value in (("hook_name", "blocks.9.hook_resid_post"), ("k", "17")):
        found = page.locator(f"#u-{field}").get_attribute("placeholder")
        for back in ("", found):
            page.locator(f"#u-{field}").fill(value)
            expect(go).to_be_disabled()
            page.locator(f"#u-{field}").fill(str(back))
            expect(go).to_be_enabled()  # what was checked is there again
    page.locator("#u-hook_name").fill("blocks.99.hook_resid_post")
    expect(page.get_by_text("saved; check it again to compute it so")).to_be_visible()
    page.reload()
    expect(page.locator("#u-hook_name")).to_have_value("blocks.99.hook_resid_post")
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_role("alert")).to_contain_text("blocks.99", timeout=SLOW)
    assert page.get_by_role("button", name="Compute").count() == 0
    page.locator("#u-hook_name").fill("blocks.4.hook_resid_post")
    page.get_by_role("button", name="Check again").click()
    expect(page.get_by_role("button", name="Compute")).to_be_visible(timeout=SLOW)
    assert site.last_import().options == {"hook_name": "blocks.4.hook_resid_post"}


def test_cancelling_deletes_what_has_arrived(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/upload")
    page.locator("#fi").set_input_files(checkpoint(TOPK))
    checked(page)
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("its files are deleted")).to_be_visible()
    assert not UploadFile.objects.filter(of=site.last_import(), kept=True).exists()


# ---- how it looks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_scrolls_no_sideways(site: Site, page: Page, scheme: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{site.url}/upload")
    assert sideways(page) == 0
    page.locator("#fi").set_input_files(checkpoint(FIXTURES / "openai/v5_topk"))
    checked(page)
    assert sideways(page) == 0
    page.get_by_text("More corrections").click()
    assert sideways(page) == 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(17, 20, 23)" if scheme == "dark" else "rgb(255, 255, 255)")
