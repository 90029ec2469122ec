"""The demo as a person meets it: the launcher, a real worker, the shipped model, and a browser on the pages."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "sae_backend.launch"]
SECONDS = 240.0  # of patience
TOKENS = "160000"  # enough for the known latents to show themselves


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a site with the tour's SAE computed; started, filled and stopped as make demo does."""
    var = tmp_path_factory.mktemp("site")
    var.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY")}
    env |= {"VAR_DIR": str(var), "PORT": str(_free_port()), "HF_HUB_OFFLINE": "1"}
    launcher = subprocess.Popen([*LAUNCH, "site"], cwd=ROOT, env=env)
    try:
        url = f"http://127.0.0.1:{env['PORT']}"
        _wait_for(f"{url}/healthz")
        load = [*LAUNCH, "command", "load_demo", "--tokens", TOKENS, "--saes", "1"]
        subprocess.run(load, cwd=ROOT, env=env, check=True, timeout=1800)
        yield url
    finally:
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(SECONDS) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=SECONDS).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(url)


def _json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=SECONDS) as answer:
        return json.load(answer)


def _sae(site: str) -> str:
    saes = _json(f"{site}/saes.json")["saes"]
    assert [s["status"] for s in saes] == ["ready"]
    return f"{site}{saes[0]['url']}"


def _before_peaks(site: str, index: int) -> list[tuple[str, str]]:
    """(the text before the peak on its line, the peak token) of each top context."""
    examples = _json(f"{_sae(site)}/{index}.json")["examples"]
    top = [e for e in examples if e["interval"] == 0]
    return [("".join(e["tokens"][: e["peak"]]).rsplit("\n", 1)[-1], e["peak_token"]) for e in top]


def test_a_known_latent_fires_on_the_exception_of_an_except_clause(site: str) -> None:
    found = _before_peaks(site, 2634)
    assert len(found) == 20
    assert sum("except" in before for before, _ in found) >= 18


def test_a_known_latent_fires_on_the_name_of_a_decorator(site: str) -> None:
    assert [(before.strip(), peak) for before, peak in _before_peaks(site, 1614)[:3]] == [("@", "property")] * 3


def test_a_known_latent_fires_on_the_line_break_after_a_backslash(site: str) -> None:
    before, peak = _before_peaks(site, 3569)[0]
    assert before.endswith("\\") and peak.startswith("\n")


def test_top_contexts_come_strongest_first_and_one_to_a_context(site: str) -> None:
    examples = _json(f"{_sae(site)}/2634.json")["examples"]
    top = [e for e in examples if e["interval"] == 0]
    assert [e["peak_act"] for e in top] == sorted((e["peak_act"] for e in top), reverse=True)
    assert len({e["context"] for e in top}) == len(top)
    assert all(e["acts"][e["peak"]] == e["peak_act"] for e in top)


def test_fidelity_is_that_of_the_weights(site: str) -> None:
    """Held out, in float32: FVU 0.061, 98.5 % of the cross-entropy recovered, L0 32."""
    sae = _json(f"{site}/saes.json")["saes"][0]
    assert sae["l0"] == pytest.approx(32, abs=0.1)
    assert sae["fvu"] == pytest.approx(0.061, abs=0.01)
    assert sae["ce_recovered"] == pytest.approx(0.985, abs=0.01)


def test_a_latent_beyond_the_last_is_not_found_and_says_the_range(site: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{_sae(site)}/4096", timeout=SECONDS)
    assert caught.value.code == 404
    assert "4" in (page := caught.value.read().decode()) and "095" in page


def test_the_pages_of_the_densest_latents_are_small(site: str) -> None:
    """Where nearly every token fires and is coloured."""
    for latent in _json(f"{_sae(site)}/latents.json?sort=-density&limit=5")["latents"]:
        for query in ("", "?view=full", "?view=full&int=rnd&ws=1"):
            url = f"{_sae(site)}/{latent['index']}{query}"
            asked = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
                sent = answer.read()
            page = gzip.decompress(sent)
            assert len(page) <= 100_000 and len(sent) <= 25_000, (url, len(page), len(sent))


@pytest.mark.browser
def test_a_reader_finds_the_known_latent_from_the_home_page(site: str, page: Page) -> None:
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
    page.goto(site)
    page.get_by_role("link", name="resid_post_2_topk32_4096").first.click()
    page.wait_for_url("**/s/*")
    page.keyboard.press("/")
    page.keyboard.type("2634\n")
    page.wait_for_url("**/2634")
    assert page.locator("h1").inner_text().startswith("2634")
    assert page.get_by_text("Error").count() >= 5
    assert faults == []


@pytest.mark.browser
def test_the_table_sorts_and_pages_without_script(site: str, chromium: Any) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{_sae(site)}?sort=-kurtosis")
    first = page.locator("table tbody tr td:first-child").all_inner_texts()
    with page.expect_navigation():
        page.get_by_role("link", name=re.compile("Next")).click()
    second = page.locator("table tbody tr td:first-child").all_inner_texts()
    assert len(first) >= 50
    assert not set(first[:50]) & set(second[:50])
    context.close()
