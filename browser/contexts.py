"""Rows of contexts: which tokens of a window are sent, how they are laid out, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from django.utils.safestring import SafeString, mark_safe

from browser.tokens import Vocabulary, direction, units
from sae_backend.packing import Examples

NEAR_BEFORE, NEAR_AFTER = 16, 18  # tokens around the strongest one that a snippet shows
SENT = 24  # tokens each way that a concordance sends, for wide screens
FULL_TOKENS = 2600  # sent by all rows of a page together when whole windows are asked for
OPEN_TOKENS = 1200  # sent by one opened row


@dataclass(frozen=True)
class Window:
    """A context of the data set."""

    index: int
    document: int  # of its first token that is not special
    position: int  # of that token within its document
    tokens: npt.NDArray[np.integer]


@dataclass(frozen=True)
class Example:
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


@dataclass(frozen=True)
class Row:
    """One example as _context.html draws it."""

    key: str
    act: float
    share: int  # per cent of the latent's maximum
    source: str
    position: int
    direction: str
    before: SafeString
    after: SafeString
    cut_before: str  # classes that say where text is left out
    cut_after: str
    first: int  # place in the window of the first token sent
    length: int  # of the window
    whole: bool  # all of the window is sent
    open: bool


def place(vocabulary: Vocabulary, window: Window, at: int) -> tuple[int, int]:
    """Document, and position in it, of a token of the window: a separator ends the document it stands in."""
    ids = window.tokens.tolist()
    first = next((i for i, t in enumerate(ids) if not vocabulary.is_special(t)), 0)
    breaks = [i for i in range(first + 1, at) if vocabulary.is_separator(ids[i])]
    if not breaks:
        return window.document, window.position + max(0, at - first)
    return window.document + len(breaks), at - breaks[-1] - 1


def examples(packed: Examples, chosen: Sequence[int], windows: dict[int, Window], vocabulary: Vocabulary) -> list[Example]:
    """The chosen ones of a latent's packed examples, in their order."""
    out = []
    for i in chosen:
        window, peak = windows[int(packed.context[i])], int(packed.peak[i])
        acts = np.zeros(len(window.tokens), np.float32)
        span = slice(packed.offsets[i], packed.offsets[i + 1])
        acts[packed.position[span]] = packed.act[span]
        out.append(Example(int(packed.interval[i]), peak, acts, window, *place(vocabulary, window, peak)))
    return out


def row(vocabulary: Vocabulary, e: Example, top: float, source: str, each_way: int, is_open: bool) -> Row:
    """Lay one example out with at most `each_way` tokens on both sides of its peak."""
    n = len(e.window.tokens)
    lo, hi = max(0, e.peak - each_way), min(n, e.peak + each_way + 1)
    ids, acts = e.window.tokens[lo:hi].tolist(), e.acts[lo:hi].tolist()
    near = max(lo, e.peak - NEAR_BEFORE), min(hi, e.peak + NEAR_AFTER)
    before, after = _sides(vocabulary, ids, acts, lo, e.peak, near, top)
    act = float(e.acts[e.peak])
    text = b"".join(vocabulary.token(t) for t in ids).decode("utf-8", "replace")
    return Row(
        key=e.key,
        act=act,
        share=round(100 * act / top) if top else 0,
        source=source,
        position=e.position,
        direction=direction(text),
        before=mark_safe(before),
        after=mark_safe(after),
        cut_before=_cuts(near[0] > 0, lo > 0),
        cut_after=_cuts(near[1] < n, hi < n),
        first=lo,
        length=n,
        whole=hi - lo == n,
        open=is_open,
    )


def _sides(
    vocabulary: Vocabulary, ids: list[int], acts: list[float], lo: int, peak: int, near: tuple[int, int], top: float
) -> tuple[str, str]:
    """Markup before the peak and from it on; what a snippet leaves out stands in .far."""
    far_before, before, after, far_after = [], [], [], []
    for unit in units(vocabulary, ids, acts, peak - lo, top):
        start, stop = unit.start + lo, unit.stop + lo
        if stop <= peak:
            (far_before if stop <= near[0] else before).append(unit.html)
        else:
            (far_after if start >= near[1] else after).append(unit.html)
    left = f'<span class=far>{"".join(far_before)}</span>' if far_before else ""
    right = f'<span class=far>{"".join(far_after)}</span>' if far_after else ""
    return left + "".join(before), "".join(after) + right


def _cuts(in_snippet: bool, in_full: bool) -> str:
    return " cut more" if in_full else " cut" if in_snippet else ""
