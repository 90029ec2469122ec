"""docs/statistics.md as a page, each figure's definition with an address of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from django.conf import settings
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.token import Token

_SUBSCRIPT = re.compile(r"(<code.*?</code>|<[^>]*>)|(?<=[\w‖Σ])_([A-Za-z]+)", re.S)  # d_i, but not in code or tags
# What pages call a figure, and the row of docs/statistics.md that defines it.
ROWS = {
    "firings": "firings n",
    "density": "density",
    "bound": "density bound",
    "status": "status",
    "max_act": "max, mean when active",
    "mean_act": "max, mean when active",
    "std_act": "std, skewness, kurtosis when active",
    "skewness": "std, skewness, kurtosis when active",
    "kurtosis": "std, skewness, kurtosis when active",
    "kurtosis_all": "kurtosis over all tokens",
    "kurtosis_zero": "kurtosis about zero",
    "margin": "margin",
    "threshold": "threshold",
    "since_fired": "steps since it fired",
    "misses": "closest to firing",
    "together": "fire together",
    "histogram": "activation histogram",
    "intervals": "intervals",
    "logits": "logit effect on token v",
    "logit_std": "logit std, skewness, kurtosis",
    "logit_skewness": "logit std, skewness, kurtosis",
    "logit_kurtosis": "logit std, skewness, kurtosis",
    "logit_class": "logit class",
    "token_sets": "token sets",
    "encoder_decoder_cos": "encoder–decoder cosine",
    "nearest_cos": "nearest, most opposing",
    "nearest_live_cos": "nearest live",
    "opposing_cos": "nearest, most opposing",
    "dimensionality": "D_i",
    "decoder_norm": "Notation",
    "b_enc": "Notation",
    "l0": "L0",
    "fvu": "MSE, FVU",
    "normalised_mse": "normalised MSE",
    "ce": "CE recovered",
    "k_curve": "FVU against k",
    "basis_kurtosis": "basis kurtosis",
    "training": "cosine to the final direction",
    "basis_by_layer": "basis kurtosis by layer",
    "opposing": "opposing",
    "features_per_dimension": "features per dimension",
    "counterpart": "best counterpart",
    "sample": "same text",
    "stitching": "stitching",
}


def anchor(text: str) -> str:
    """The fragment of a heading or of a table's row."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@cache
def address(figure: str) -> str:
    """Where a figure is defined."""
    return f"{reverse('statistics')}#{anchor(ROWS[figure])}"


@dataclass(frozen=True)
class Definitions:
    """The page of all definitions."""

    template: ClassVar[str] = "browser/statistics.html"

    @property
    def html(self) -> SafeString:
        return _document()


@cache
def _document() -> SafeString:
    """The document as HTML."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse((settings.BASE_DIR / "docs" / "statistics.md").read_text())
    _name(tokens)
    html: str = markdown.renderer.render(tokens, markdown.options, {})
    scroll = '<div class="scroll" tabindex="0" role="group" aria-label="Definitions"><table>'
    html = html.replace("<table>", scroll).replace("</table>", "</table></div>")
    html = html.replace("<pre>", '<pre tabindex="0" role="group" aria-label="Worked example">')
    return mark_safe(_SUBSCRIPT.sub(lambda found: found[1] or f"<sub>{found[2]}</sub>", html))


def _name(tokens: list[Token]) -> None:
    """Each heading is called what it says, each row what its first cell says; the first of a name alone has it."""
    named: set[str] = set()
    for opened, following, words in zip(tokens, tokens[1:], [*tokens[2:], None], strict=False):
        if opened.type == "tr_open" and following.type == "td_open" and words is not None:
            name = anchor(words.content)
        elif opened.type == "heading_open":
            name = anchor(following.content)
        else:
            continue
        if name not in named:
            opened.attrSet("id", name)
        named.add(name)
