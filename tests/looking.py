"""A page as people with different screens, themes and senses meet it: axe-core's rules, sideways scrolling, what shifts
while it loads, errors of scripts; and a picture of each, kept in artefacts/screenshots for whoever looks afterwards."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0  # seconds
AXE = (ROOT / "tests" / "vendor" / "axe-4.14.1.min.js").read_text()
PICTURES = ROOT / "artefacts" / "screenshots"
WIDE, NARROW, HEIGHT = 1440, 390, 900
LOOKS = ((WIDE, "light"), (WIDE, "dark"), (NARROW, "dark"), (NARROW, "light"))
POLLED = re.compile(r"/live\b|/jobs/(running|others)\b")
MOST_SHIFT = 0.01  # a score under 0.1 is called good; nothing here should move at all
LEVELS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RULES = {"runOnly": LEVELS, "resultTypes": ["violations"]}
SHIFT = """() => new Promise(done => {
  let sum = 0; const moved = [];
  new PerformanceObserver(list => list.getEntries().forEach(e => { if (!e.hadRecentInput) { sum += e.value;
    e.sources.forEach(s => moved.push(s.node?.className || s.node?.nodeName)); } }))
    .observe({ type: "layout-shift", buffered: true });
  setTimeout(() => done([sum, moved.join(" ")]), 50);
})"""


@dataclass
class Looking:
    """A page that writes down what it finds wrong."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        still(self.page)

    def open(self, url: str, name: str, status: int = 200) -> None:
        """Open an address in every look; `name` is that of its pictures. Faults are kept for the end."""
        for width in (WIDE, NARROW):
            self.page.set_viewport_size({"width": width, "height": HEIGHT})
            answer = self.page.goto(url)
            if answer is None or answer.status != status:
                self.faults.append(f"{name}: answers {answer and answer.status}")
            self.page.wait_for_load_state("networkidle")
            self._still(f"{name} {width}")
            for wide, theme in LOOKS:
                if wide == width:
                    self.look(name, width, theme)

    def look(self, name: str, width: int, theme: Any) -> None:
        """What is on the screen now, in one theme."""
        self.page.emulate_media(color_scheme=theme)
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}-{width}-{theme}.png", full_page=True, animations="disabled")
        if (over := sideways(self.page)) > 0:
            self.faults.append(f"{name} {width} {theme}: scrolls sideways by {over} px")
        self.faults += [f"{name} {width} {theme}: {fault}" for fault in violations(self.page)]

    def _still(self, name: str) -> None:
        moved, what = self.page.evaluate(SHIFT)
        if moved > MOST_SHIFT:
            self.faults.append(f"{name}: shifts by {moved:.3f}: {what}")


def still(page: Page) -> None:
    """Leave live parts as they came: fetched anew they may say more, move what is below, or go while axe-core looks."""
    page.route(POLLED, lambda route: route.fulfill(status=503))


def until(page: Page, so: str, arg: object = None) -> None:
    """Wait until a script says that something is so: Playwright's own way needs eval, which the site does not allow."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(so, arg):
        assert time.monotonic() < deadline, so
        page.wait_for_timeout(20)


def sideways(page: Page) -> int:
    """Pixels by which a page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def violations(page: Page) -> list[str]:
    """What axe-core finds on a page as it stands, one line each."""
    page.evaluate(AXE)
    found = page.evaluate("rules => axe.run(document, rules)", RULES)["violations"]
    said = []
    for rule in found:
        nodes = [node["html"][:160] for node in rule["nodes"] if not _elsewhere(rule["id"], node["html"])]
        said += [f"{rule['id']}: {rule['help']}: {' | '.join(nodes[:3])}"] if nodes else []
    return said


def _elsewhere(rule: str, html: str) -> bool:
    """Marks of a chart lie where the data are; WCAG 2.5.8 allows that, for a table has the same links."""
    return rule == "target-size" and html.startswith('<a class="pt ')
