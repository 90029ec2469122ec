"""What axe-core finds wrong with a page as it stands in a browser: WCAG 2.2 A and AA, and its best practices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
SCHEMES: tuple[Any, ...] = ("light", "dark")


def faults(page: Page) -> list[str]:
    """Rule and elements of each fault, in both colour schemes."""
    page.evaluate(AXE.read_text())  # not as a script of the page, which its policy would refuse
    found = []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        result = page.evaluate("rules => axe.run(document, { runOnly: rules, resultTypes: ['violations'] })", RULES)
        for fault in result["violations"]:
            places = [" ".join(map(str, node["target"])) for node in fault["nodes"]]
            found.append(f"{page.url} {scheme} {fault['id']}: {', '.join(places[:5])}")
    return found


def sideways(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
