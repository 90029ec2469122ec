"""What other SAEs have that is most like a latent, from the comparisons that are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.urls import reverse

from browser.queries.saes import ResolvedSae
from sae_backend import comparisons
from sae_backend.comparisons import Counterpart


@dataclass(frozen=True)
class Shown:
    """A latent of another SAE, as the page of the one that it is like shows it."""

    found: Counterpart
    sae: str

    @property
    def url(self) -> str:
        return reverse("latent_detail", args=[self.found.public_id, self.found.index])

    @property
    def compare(self) -> str:
        return f"{reverse('compare')}?a={self.sae}&b={self.found.public_id}"

    @property
    def given(self) -> float | None:
        """The share of the latent's firings on the same text on which this one fires too."""
        return self.found.both / self.found.fires if self.found.fires else None

    def as_json(self) -> dict[str, Any]:
        x = self.found
        known = {"sae": x.public_id, "name": x.name, "d_sae": x.d_sae, "index": x.index, "cos": float(f"{x.cos:.7g}")}
        return {**known, "fires_too": self.given, "url": self.url, "compare": self.compare}


def counterparts(resolved: ResolvedSae, index: int) -> list[Shown]:
    """The best counterpart in each SAE that this one was compared with; no query where there is none, or a run is
    pinned: what such a page shows stays as it is."""
    if resolved.pinned or not resolved.sae.compared:
        return []
    return [Shown(found, resolved.sae.public_id) for found in comparisons.single(resolved.sae.pk, index)]
