"""What is passed on of a latent: the page that cites it and the one that other sites show in a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from browser.citation import Citation
from browser.contexts import Drawn, Row
from browser.figures import Figure
from browser.queries.latent_page import LatentPage

EMBEDDED = 6  # contexts in an embed
FACTS = ("density", "max_act", "mean_act", "kurtosis", "nearest_cos")


@dataclass(frozen=True)
class CitePage:
    """How to cite and embed a latent."""

    citation: Citation
    kept: bool  # whether its run is kept for its links
    template: ClassVar[str] = "browser/latent_cite.html"

    @property
    def address(self) -> str:
        return self.citation.resolved.pin


@dataclass(frozen=True)
class EmbedPage:
    """A latent in little, without scripts."""

    latent: LatentPage
    citation: Citation
    template: ClassVar[str] = "browser/latent_embed.html"

    @property
    def facts(self) -> list[Figure]:
        """What of the strip there is room for."""
        return [figure for figure in self.latent.strip if figure.column in FACTS]

    @property
    def rows(self) -> list[tuple[Row, Drawn]]:
        return self.latent.contexts.rows[:EMBEDDED]
