"""What a latent's card says, in two queries beside the one for its rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from browser.card import ROWS, Facts, Line, Piece, has_glyph
from browser.charts import linear_counts, log_heights
from browser.contexts import Example, examples
from browser.queries.latents import Stored, stored, vocabulary, windows
from browser.queries.saes import ResolvedSae
from browser.templatetags import latent_tags as printed
from browser.tokens import Vocabulary, direction, level, strings
from sae_backend.packing import TOP

BARS = 60
BEFORE, AFTER = 40, 60  # tokens each way that may find room
_SIGNS = str.maketrans({"\n": "↵", "\t": "⇥", "\r": "␍"})


def facts(resolved: ResolvedSae, index: int) -> Facts:
    """The card of one latent; LatentNotFound where there is none."""
    latent, words, sae = stored(resolved, index), vocabulary(resolved.sae.lm), resolved.sae
    lines = _lines(resolved, latent, words)
    return Facts(
        str(index),
        f"sae:{resolved.pin}",
        " ".join(" / ".join((sae.lm.name, sae.hook_name, sae.name)).split()),  # one line, whatever people call it
        tuple(_chip(words.text(t)) for t in latent.strongest),
        _figures(latent),
        _bars(latent),
        lines,
        "" if lines else _note(latent),
    )


def _chip(text: str) -> str:
    """With its leading space marked, as chips on pages have it."""
    return drawable(f"·{text[1:]}" if text.startswith(" ") else text)


def _figures(latent: Stored) -> tuple[tuple[str, str], ...]:
    values = latent.values
    return (
        ("Status", values["status"].capitalize()),
        ("Density", printed.density(values["density"])),
        ("Max", printed.compact(values["max_act"])),
        ("Mean if active", printed.compact(values["mean_act"])),
        ("Kurtosis", printed.compact(values["kurtosis"])),
        ("Nearest cos", printed.fixed(values["nearest_cos"])),
    )


def _bars(latent: Stored) -> tuple[float, ...]:
    if not latent.values["firings"] or not latent.top:
        return ()
    counts = linear_counts(latent.histogram, latent.top, BARS)
    return tuple(np.round(log_heights(counts, max(int(counts.max()), 1)), 1).tolist())


def _note(latent: Stored) -> str:
    if not latent.values["firings"]:
        return f"It never fired on {latent.values['tokens']:,} tokens."
    return "Its contexts are in a script that this picture cannot show."


def _lines(resolved: ResolvedSae, latent: Stored, words: Vocabulary) -> tuple[Line, ...]:
    """The strongest contexts that the font can show."""
    chosen = np.flatnonzero(latent.examples.interval == TOP)[: 3 * ROWS].tolist()
    found = windows(resolved.run, resolved.sae.lm.d_vocab, latent.examples.context[chosen])
    lines = (_line(e, words, latent.top) for e in examples(latent.examples, chosen, found, words))
    return tuple(line for line in lines if line is not None)[:ROWS]


def _line(e: Example, words: Vocabulary, top: float) -> Line | None:
    lo, hi = max(0, e.peak - BEFORE), e.peak + AFTER
    texts = strings(words, e.window.tokens[lo:hi].tolist())
    if not _readable(texts):
        return None
    steps = [level(act, top) for act in e.acts[lo:hi].tolist()]
    pieces = tuple(Piece(drawable(t), step) for t, step in zip(texts, steps, strict=True))
    return Line(pieces[: e.peak - lo], pieces[e.peak - lo :])


def _readable(texts: Sequence[str]) -> bool:
    """Whether nearly all of it has glyphs, and it runs from left to right: nothing here joins letters."""
    text = "".join(texts).translate(_SIGNS)
    missing = sum(not has_glyph(c) for c in text)
    return not direction(text) and missing <= len(text) // 20


def drawable(text: str) -> str:
    """The text with a square for what the font has not got."""
    return "".join(c if has_glyph(c) else "\N{WHITE SQUARE}" for c in text.translate(_SIGNS))
