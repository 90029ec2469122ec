"""Rows of contexts: which tokens of a window are sent, how they are laid out, and where they come from.

A page has scores of these records: most are named tuples, which are made sooner than frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from django.utils.safestring import SafeString

from browser.tokens import Line, Unit, Vocabulary, direction, spans, units
from sae_backend.packing import Examples

NEAR_BEFORE, NEAR_AFTER = 16, 18  # tokens around the strongest one that a snippet shows
SENT = 24  # tokens each way that a concordance sends, for wide screens
COLOURED = 2.5  # what the markup of a token that fires is longer than another's
FULL_TOKENS = 2760  # sent by all rows of a page together when whole windows are asked for
OPEN_TOKENS = 1200  # sent by one opened row


@dataclass(frozen=True)
class Window:
    """A context of the data set."""

    index: int
    document: int  # of its first token that is not special
    position: int  # of that token within its document
    tokens: npt.NDArray[np.integer]


class Example(NamedTuple):
    """A window in which a latent fires, and the token it is about."""

    interval: int
    peak: int
    acts: npt.NDArray[np.float32]  # [ctx_len]
    window: Window
    document: int  # of the peak
    position: int

    @property
    def key(self) -> str:
        return f"{self.window.index}-{self.peak}"


class Drawn(NamedTuple):
    """The tokens of one example as markup, laid out about the strongest one."""

    before: SafeString
    after: SafeString  # from the peak on
    cut_before: str  # classes that say where text is left out
    cut_after: str
    direction: str
    first: int  # place in the window of the first token sent
    length: int  # of the window
    whole: bool  # all of it is sent


class Row(NamedTuple):
    """What _contexts.html says of one example."""

    key: str
    act: float
    share: int  # per cent of the latent's maximum
    source: str
    position: int
    query: str  # of the page with this row opened, or closed
    open: bool


def place(vocabulary: Vocabulary, window: Window, at: int) -> tuple[int, int]:
    """Document, and position in it, of a token of the window: a separator ends the document it stands in."""
    first, breaks = _documents(vocabulary, window, at)
    if not breaks:
        return window.document, window.position + max(0, at - first)
    return window.document + len(breaks), at - breaks[-1] - 1


def _documents(vocabulary: Vocabulary, window: Window, at: int) -> tuple[int, list[int]]:
    """Where the window's text begins, and the separators between that and a place: few tokens are looked at twice."""
    ids = window.tokens.astype(np.int64)
    special = np.flatnonzero(vocabulary.specials[np.minimum(ids, len(vocabulary.tokens))]).tolist()
    first = next((i for i, s in enumerate(special) if i != s), len(special)) % max(1, len(ids))
    return first, [i for i in special if first < i < at and vocabulary.is_separator(int(ids[i]))]


def weakest(packed: Examples, n: int) -> list[int]:
    """Places of the n weakest examples, each token once, weakest first."""
    at_peak = packed.position == np.repeat(packed.peak, np.diff(packed.offsets))
    once: dict[tuple[int, int], int] = {}
    for i in np.argsort(packed.act[at_peak], kind="stable").tolist():
        once.setdefault((int(packed.context[i]), int(packed.peak[i])), i)
    return list(once.values())[:n]


def examples(
    packed: Examples, chosen: Sequence[int], windows: dict[int, Window], vocabulary: Vocabulary
) -> list[Example]:
    """The chosen ones of a latent's packed examples, in their order."""
    out = []
    for i in chosen:
        window, peak = windows[int(packed.context[i])], int(packed.peak[i])
        acts = np.zeros(len(window.tokens), np.float32)
        span = slice(packed.offsets[i], packed.offsets[i + 1])
        acts[packed.position[span]] = packed.act[span]
        out.append(Example(int(packed.interval[i]), peak, acts, window, *place(vocabulary, window, peak)))
    return out


def around(e: Example) -> tuple[int, int]:
    """What a concordance or a snippet sends: as much on either side of the peak."""
    return max(0, e.peak - SENT), min(len(e.window.tokens), e.peak + SENT + 1)


def part(e: Example, tokens: int) -> tuple[int, int]:
    """The window, or so many tokens of it that hold the peak; fewer where most of them are coloured."""
    tokens = int(tokens / (1 + COLOURED * np.count_nonzero(e.acts) / len(e.acts)))
    lo = max(0, min(e.peak - tokens // 2, len(e.window.tokens) - tokens))
    return lo, min(len(e.window.tokens), lo + tokens)


def draw(vocabulary: Vocabulary, e: Example, span: tuple[int, int], top: float, spaces: bool) -> Drawn:
    """Lay out the tokens lo ≤ i < hi of an example's window."""
    n, (lo, hi) = len(e.window.tokens), span
    ids = e.window.tokens[lo:hi].tolist()
    near = max(lo, e.peak - NEAR_BEFORE), min(hi, e.peak + NEAR_AFTER)
    line = Line(e.acts[lo:hi].tolist(), e.peak - lo, top, spaces)
    snippet = near[0] - lo, near[1] - lo
    if (drawn := spans(vocabulary, ids, line)) is not None:
        before, after = _cut(drawn, line.peak, *snippet)
    else:
        before, after = _sides(units(vocabulary, ids, line), line.peak, *snippet)
    cuts = _cuts(near[0] > 0, lo > 0), _cuts(near[1] < n, hi < n)
    return Drawn(SafeString(before), SafeString(after), *cuts, _direction(vocabulary, ids), lo, n, hi - lo == n)


def _direction(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    if vocabulary.beyond_latin.isdisjoint(ids):
        return ""
    return direction(b"".join(map(vocabulary.token, ids)).decode("utf-8", "replace"))


def _cut(drawn: list[str], peak: int, lo: int, hi: int) -> tuple[str, str]:
    """Markup before the peak and from it on; what a snippet, lo ≤ i < hi, leaves out stands in .far."""
    before, after = "".join(drawn[lo:peak]), "".join(drawn[peak:hi])
    far = "".join(drawn[:lo]), "".join(drawn[hi:])
    return _far(far[0]) + before, after + _far(far[1])


def _sides(drawn: list[Unit], peak: int, lo: int, hi: int) -> tuple[str, str]:
    """The same of groups of tokens, none of which is divided."""
    before = [u for u in drawn if u.stop <= peak]
    after = drawn[len(before) :]
    far = _html(u for u in before if u.stop <= lo), _html(u for u in after if u.start >= hi)
    near = _html(u for u in before if u.stop > lo), _html(u for u in after if u.start < hi)
    return _far(far[0]) + near[0], near[1] + _far(far[1])


def _html(drawn: Iterable[Unit]) -> str:
    return "".join(u.html for u in drawn)


def _far(html: str) -> str:
    return f"<span class=far>{html}</span>" if html else ""


def _cuts(in_snippet: bool, in_full: bool) -> str:
    return " cut more" if in_full else " cut" if in_snippet else ""
