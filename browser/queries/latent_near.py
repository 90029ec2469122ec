"""What lies near a latent: directions, latents that fire with it, and, if it never fired, where it came closest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from django.utils.safestring import SafeString

from browser import figures
from browser.contexts import OPEN_TOKENS, Drawn, Example, Row, around, draw, part, place
from browser.queries.latents import Stored, documents, neighbour_rows, windows
from browser.queries.latents import vocabulary as vocabulary_of
from browser.queries.saes import ResolvedSae
from browser.templatetags.latent_tags import thousands
from browser.tokens import Vocabulary, chips
from sae_backend.models import Run, Sae
from sae_backend.packing import TOP, Together

_CUTS = {
    "topk": "the k-th largest pre-activation of the token (or 0)",
    "groupmax": "the largest pre-activation of its group (or 0)",
    "jumprelu": "its threshold",
    "batchtopk": "the threshold",
    "gated": "its gate's threshold",
}


class View(Protocol):
    """How a page is looked at."""

    @property
    def context(self) -> str: ...
    @property
    def whitespace(self) -> bool: ...
    def turned(self, context: str) -> str: ...


@dataclass(frozen=True)
class Neighbour:
    index: int
    cos: float  # or the Jaccard index
    cosine: str
    width: int  # per cent of 1
    beside: str  # the Jaccard index, or on how many tokens both fire; "" where it was not counted
    means: str  # more of that, in words
    density: float | None
    tokens: SafeString  # its strongest, standing in for a label


@dataclass(frozen=True)
class Misses:
    """Where a latent that never fired came closest; rows print by how much it missed."""

    rows: list[tuple[Row, Drawn]]
    decimals: int
    tokens: int  # that were looked at
    cut: str  # what it stayed below

    @property
    def closest(self) -> float:
        """By how much it missed at best."""
        return -self.rows[0][0].act


def cut(sae: Sae) -> str:
    """What a pre-activation has to exceed, in words."""
    return _CUTS.get(sae.architecture, "0")


def missed(resolved: ResolvedSae, latent: Stored) -> list[tuple[Example, float]]:
    """The windows in which a latent came closest, and by how much it missed; none of a latent that fired."""
    x, words = latent.misses, vocabulary_of(resolved.sae.lm)
    if x is None:
        return []
    found = windows(resolved.run, resolved.sae.lm.d_vocab, x.context)
    out = []
    for context, peak, margin in zip(x.context.tolist(), x.peak.tolist(), x.margin.tolist(), strict=True):
        window = found[context]
        acts = np.zeros(len(window.tokens), np.float32)
        out.append((Example(TOP, peak, acts, window, *place(words, window, peak)), margin))
    return out


def misses(resolved: ResolvedSae, latent: Stored, view: View) -> Misses | None:
    """Rows as those of contexts; None of a latent that fired, or of a run that did not look."""
    found, words = missed(resolved, latent), vocabulary_of(resolved.sae.lm)
    if not found:
        return None
    names = documents(resolved.run, (e.document for e, _ in found))
    rows = [(_row(e, margin, names, view), _drawn(words, e, view)) for e, margin in found]
    decimals = figures.decimals(max(abs(margin) for _, margin in found))
    return Misses(rows, decimals, sampled(resolved.run, "margin"), cut(resolved.sae))


def _row(e: Example, margin: float, names: Mapping[int, str], view: View) -> Row:
    is_open = e.key == view.context
    source = names.get(e.document, f"document {e.document}")
    return Row(e.key, margin, 0, source, e.position, view.turned(e.key), is_open)


def _drawn(words: Vocabulary, e: Example, view: View) -> Drawn:
    span = part(e, OPEN_TOKENS) if e.key == view.context else around(e)
    return draw(words, e, span, 1.0, view.whitespace)


def sampled(run: Run, what: str) -> int:
    """Tokens that were looked at for margins ("margin"), or for what fires together ("cofiring")."""
    return int(run.summary.get("sample_tokens", {}).get(what, 0))


def neighbours(
    run: Run, latent: Stored, words: Vocabulary
) -> tuple[list[Neighbour], list[Neighbour], list[Neighbour]]:
    """Nearest, opposing and co-firing latents with what one query says of all of them."""
    x, t = latent.neighbours, latent.together
    others = [] if t is None else t.latent.tolist()
    rows = neighbour_rows(run, [*x.nearest.tolist(), *x.opposing.tolist(), *others])

    def side(indices: Any, cosines: Any, both: Any, firings: Any) -> list[Neighbour]:
        return [
            _beside(i, c, _jaccard(t, both, firings, at), rows.get(i, {}), words)
            for at, (i, c) in enumerate(zip(indices.tolist(), cosines.tolist(), strict=True))
        ]

    none: Sequence[int] = ()
    nearest = side(x.nearest, x.nearest_cos, t.nearest if t else none, t.nearest_firings if t else none)
    opposing = side(x.opposing, x.opposing_cos, t.opposing if t else none, t.opposing_firings if t else none)
    together = [] if t is None else [_together(t, at, i, rows.get(i, {}), words) for at, i in enumerate(others)]
    return nearest, opposing, together


def _jaccard(t: Together | None, both: Sequence[int], firings: Sequence[int], at: int) -> str:
    """That of two latents; "" where it is undefined, or was not counted."""
    index = t.jaccard(int(both[at]), int(firings[at])) if t is not None and at < len(both) else None
    return "" if index is None else f"{index:.2f}"


def _beside(index: int, cos: float, jaccard: str, found: Mapping[str, Any], words: Vocabulary) -> Neighbour:
    cosine = f"{cos:+.2f}".replace("-", "\N{MINUS SIGN}")
    return Neighbour(index, cos, cosine, round(100 * abs(cos)), jaccard, "", *_known(found, words))


def _together(t: Together, at: int, index: int, found: Mapping[str, Any], words: Vocabulary) -> Neighbour:
    both, firings = int(t.both[at]), int(t.firings[at])
    jaccard = t.jaccard(both, firings) or 0.0
    shown = f"{jaccard:.2f}", round(100 * jaccard), thousands(both), f"{thousands(both)} of its {thousands(firings)}"
    return Neighbour(index, jaccard, *shown, *_known(found, words))


def _known(found: Mapping[str, Any], words: Vocabulary) -> tuple[float | None, SafeString]:
    return found.get("density"), chips(words, found.get("strongest", []))
