"""Tokens as people read them: each token's own bytes become escaped, display-ready text, on the server.

Tokens that hold parts of a character are grouped with the tokens that hold its other parts; each part is a
cell of its own, in hexadecimal, and keeps its own activation. What is shown can be turned back into the text:
line ends and other invisible characters stand in an <i>, whatever else differs is in data-r.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from html import escape
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from django.utils.safestring import SafeString

LONG = 24  # characters from which a token is cut in a row
LEVELS = 8  # steps of the activation ramp, l1 … l8
# Format characters that shape the letters beside them: named only where nothing else is to be seen.
_SOFT = {"\u200c", "\u200d", *map(chr, range(0xFE00, 0xFE10))}
_BLANK_LETTERS = {"\u034f", "\u115f", "\u1160", "\u3164", "\uffa0"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive tokens start ≤ i < stop that only together are whole characters; most have one token."""

    start: int
    stop: int
    text: str  # U+FFFD for bytes that form no character


@dataclass(frozen=True, slots=True)
class Glyph:
    """How a vocabulary entry is drawn: CSS classes, escaped content, and its text if whole characters."""

    classes: str
    html: str
    text: str
    whole: bool


class _ById(dict[int, str]):
    """Made when first asked for, so that a row of tokens that were is looked up without a call of Python."""

    def __init__(self, make: Callable[[int], str]) -> None:
        self.make = make

    def __missing__(self, id: int) -> str:
        return self.setdefault(id, self.make(id))


@dataclass(frozen=True)
class Vocabulary:
    """Every token's own bytes by id, and which are special; glyphs are made when first asked for."""

    tokens: list[bytes]
    special: list[bool]
    _glyphs: dict[int, Glyph] = field(default_factory=dict, repr=False, compare=False)
    _chips: dict[tuple[int, int], SafeString] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def specials(self) -> npt.NDArray[np.bool_]:
        """is_special by id; the last is for all ids beyond the vocabulary."""
        return np.array([*self.special, True], bool)

    @cached_property
    def beyond_latin(self) -> frozenset[int]:
        """Tokens with a byte of a character from U+0590 on, where scripts from right to left begin."""
        return frozenset(i for i, token in enumerate(self.tokens) if token and max(token) >= 0xD6)

    @cached_property
    def parts(self) -> frozenset[int]:
        """Tokens that hold parts of characters."""
        return frozenset(i for i, token in enumerate(self.tokens) if not _is_whole(token))

    @cached_property
    def joined(self) -> bytes:
        """All tokens, with a byte before and after each that is in no text: for whoever searches them."""
        return b"\xff" + b"\xff".join(self.tokens) + b"\xff"

    @cached_property
    def starts(self) -> list[int]:
        """Where each token begins in `joined`."""
        return list(accumulate((len(token) + 1 for token in self.tokens[:-1]), initial=1))

    def token(self, id: int) -> bytes:
        """Its bytes; none for an id beyond the vocabulary (models pad theirs)."""
        return self.tokens[id] if id < len(self.tokens) else b""

    def is_special(self, id: int) -> bool:
        return id >= len(self.tokens) or self.special[id]

    def is_separator(self, id: int) -> bool:
        """Whether a document begins after it: special, and not a run of spaces that a tokenizer added."""
        return self.is_special(id) and bool(self.token(id).strip())

    def glyph(self, id: int) -> Glyph:
        if (known := self._glyphs.get(id)) is None:
            known = self._glyphs[id] = _glyph(id, self.token(id), self.is_special(id))
        return known

    @cached_property
    def silent(self) -> tuple[Mapping[int, str], Mapping[int, str]]:
        """Markup of whole tokens that do not fire, by id, alike wherever they stand; and with spaces marked."""
        plain, spaced = Line((0.0,), 0, 1.0), Line((0.0,), 0, 1.0, spaces=True)
        return _ById(lambda id: plain.drawn(self.glyph(id))), _ById(lambda id: spaced.drawn(self.glyph(id)))

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """Of whole tokens, by id."""
        return _ById(lambda id: self.glyph(id).text)

    def text(self, id: int) -> str:
        """One token alone as plain text, hexadecimal where it is part of a character."""
        glyph = self.glyph(id)
        return glyph.text if glyph.whole else _hex(self.token(id))


def groups(tokens: Sequence[bytes]) -> list[Group]:
    """Partition tokens so that no character is divided; texts join to the bytes decoded with replacement."""
    data = b"".join(tokens)
    lone = _lone_continuations(data)
    out, start, at, begun = [], 0, 0, 0
    for i, token in enumerate(tokens):
        at += len(token)
        if at < len(data) and data[at] & 0xC0 == 0x80 and at not in lone:
            continue  # the next token goes on with this one's last character
        out.append(Group(start, i + 1, data[begun:at].decode("utf-8", "replace")))
        start, begun = i + 1, at
    return out


def _lone_continuations(data: bytes) -> set[int]:
    """Offsets at which a malformed sequence begins."""
    found, at = set(), 0
    while at < len(data):
        try:
            data[at:].decode()
            break
        except UnicodeDecodeError as error:
            found.add(at + error.start)
            at += error.end
    return found


def strings(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """One string a token, joining to the text: a character in several tokens is given by the first."""
    if vocabulary.parts.isdisjoint(ids):
        return list(map(vocabulary.texts.__getitem__, ids))
    out = [""] * len(ids)
    for group in groups([vocabulary.token(i) for i in ids]):
        out[group.start] = group.text
    return out


def direction(text: str) -> str:
    """ "rtl" where most letters are written from right to left, else nothing."""
    if not text or max(text) < "\u0590":
        return ""
    kinds = [unicodedata.bidirectional(c) for c in text]
    return "rtl" if kinds.count("R") + kinds.count("AL") > kinds.count("L") else ""


def level(act: float, top: float) -> int:
    """Step 1 … 8 of the ramp, linear in activation over the latent's maximum; 0 where it does not fire."""
    return 0 if act <= 0 or top <= 0 else min(LEVELS, max(1, math.ceil(LEVELS * act / top - 1e-6)))


def chip(vocabulary: Vocabulary, id: int, step: int = 0) -> SafeString:
    """One token by itself, at a step of the ramp or (0) neutral."""
    if (known := vocabulary._chips.get((id, step))) is None:
        known = vocabulary._chips[id, step] = _chip(vocabulary.glyph(id), step)
    return known


def _chip(glyph: Glyph, step: int) -> SafeString:
    wanted = ("tki", "s" if glyph.html.startswith(" ") else "", glyph.classes, f"l{step}" if step else "")
    carrier = "◌" if glyph.whole and glyph.text and unicodedata.combining(glyph.text[0]) else ""
    return SafeString(f'<span class="{" ".join(filter(None, wanted))}">{carrier}{glyph.html}</span>')


def chips(vocabulary: Vocabulary, ids: Iterable[int]) -> SafeString:
    """Several tokens, one after another."""
    return SafeString("".join(chip(vocabulary, id) for id in ids))


@dataclass(frozen=True, slots=True)
class Unit:
    """The markup of one group of a row."""

    start: int
    stop: int
    html: str


class Line(NamedTuple):
    """What colours the tokens of a row."""

    acts: Sequence[float]
    peak: int  # place of the token that the row is about
    top: float  # the latent's largest activation
    spaces: bool = False  # leading spaces are marked, by a class that most tokens would have

    def span(self, at: int, classes: str, html: str, raw: str | None = None) -> str:
        """The token at a place of the row; raw is its text where that cannot be read off what is shown."""
        act = self.acts[at]
        if self.spaces and html.startswith(" "):
            classes = f"s {classes}"
        if act > 0:
            classes = f"l{level(act, self.top)} {'pk ' if at == self.peak else ''}{classes}"
        attributes = _class(classes.rstrip()) + (f" data-a={act:.4g}" if act > 0 else "")
        kept = "" if raw is None else f' data-r="{escape(raw)}"'
        return f"<span{attributes}{kept}>{html}</span>"

    def drawn(self, glyph: Glyph, at: int = 0) -> str:
        """A whole token at a place of the row."""
        return self.span(at, glyph.classes, glyph.html)


def spans(vocabulary: Vocabulary, ids: Sequence[int], line: Line) -> list[str] | None:
    """Markup of each token; None where some are only parts of characters, and `units` groups them."""
    if not vocabulary.parts.isdisjoint(ids):
        return None
    out = list(map(vocabulary.silent[line.spaces].__getitem__, ids))
    for at, act in enumerate(line.acts):
        if act > 0:
            out[at] = line.drawn(vocabulary.glyph(ids[at]), at)
    return out


def units(vocabulary: Vocabulary, ids: Sequence[int], line: Line) -> list[Unit]:
    """Markup of each group of consecutive tokens."""
    glyphs = [vocabulary.glyph(i) for i in ids]
    out: list[Unit] = []
    at, n = 0, len(ids)
    while at < n:
        if glyphs[at].whole:
            out.append(Unit(at, at + 1, line.drawn(glyphs[at], at)))
            at += 1
            continue
        stop = next((j for j in range(at, n) if glyphs[j].whole), n)
        out.extend(_divided([vocabulary.token(i) for i in ids[at:stop]], at, line))
        at = stop
    return out


def _divided(tokens: list[bytes], at: int, line: Line) -> Iterator[Unit]:
    """Units of tokens that are no whole characters by themselves; `at` is the place of the first."""
    for group in groups(tokens):
        own = tokens[group.start : group.stop]
        raw = group.text if len(own) == 1 else None
        html = "".join(
            line.span(at + group.start + j, "by", _part(token), raw) for j, token in enumerate(own)
        )
        if len(own) > 1:
            character = _divided_characters(own)
            kept = "" if character == group.text else f' data-r="{escape(group.text)}"'
            html = f'<span class=bys data-ch="{escape(character)}"{kept}>{html}</span>'
        yield Unit(at + group.start, at + group.stop, html)


def _class(classes: str) -> str:
    if not classes:
        return ""
    return f' class="{classes}"' if " " in classes else f" class={classes}"


@lru_cache(maxsize=4096)
def _part(token: bytes) -> str:
    """Content of a token with parts of characters: hexadecimal around what is whole."""
    head, middle, tail = _split(token)
    shown = [_hex(head), _shown(middle.strip()) if middle.strip() else "", _hex(tail)]
    return " " * (middle.startswith(" ") and not head) + " ".join(filter(None, shown))


def _split(token: bytes) -> tuple[bytes, str, bytes]:
    """The end of a character, whole characters, the beginning of one; malformed bytes count as that."""
    a = 0
    while a < len(token) and token[a] & 0xC0 == 0x80:
        a += 1
    try:
        return token[:a], token[a:].decode(), b""
    except UnicodeDecodeError as error:
        b = a + error.start
        return token[:a], token[a:b].decode(), token[b:]


def _divided_characters(tokens: list[bytes]) -> str:
    """The characters of a group that lie in more than one token."""
    data = b"".join(tokens)
    cut, at = set(), 0
    for token in tokens[:-1]:
        at += len(token)
        cut.add(at)
    text, offset, found = data.decode("utf-8", "surrogateescape"), 0, ""
    for character in text:
        width = len(character.encode("utf-8", "surrogateescape"))
        if any(c in cut for c in range(offset + 1, offset + width)):
            found += character
        offset += width
    if "\udc80" <= max(found, default="\udc80") <= "\udcff":
        return "\ufffd"
    return found if all(map(_is_visible, found)) else " ".join(f"U+{ord(c):04X}" for c in found)


def _hex(data: bytes) -> str:
    return data.hex(" ").upper()


def _is_whole(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _glyph(id: int, token: bytes, special: bool) -> Glyph:
    if not token:
        return Glyph("sp", f'<i class=u data-r="">id {id}</i>', "", True)
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return Glyph("by", _part(token), token.decode("utf-8", "replace"), False)
    if special:
        return Glyph("sp", _pill(text), text, True)
    return Glyph("lng" if len(text) > LONG else "", _shown(text), text, True)


def _pill(text: str) -> str:
    """A special token's name; its outline says what <| and |> do."""
    name = text.strip("<|>[]")
    if name == text or not name.isprintable() or not name:
        return _shown(text)
    return f'<i class=u data-r="{escape(text)}">{escape(name)}</i>'


def _shown(text: str) -> str:
    """Escaped text with a sign for each character that would not be seen."""
    blank = not any(_is_visible(c) for c in text)
    return "".join(_sign(c, blank) for c in text)


def _is_visible(c: str) -> bool:
    kind = unicodedata.category(c)
    return kind not in _INVISIBLE and kind != "Zs" and c not in _SOFT and c not in _BLANK_LETTERS


def _sign(c: str, blank: bool) -> str:
    if c == "\n":
        return "<i class=nl>↵</i>"
    if c == "\t":
        return "<i class=tb>⇥</i>"
    if c == " " or _is_visible(c):
        return escape(c)
    if c < " ":
        return f"<i class=u>{chr(0x2400 + ord(c))}</i>"
    soft = c in _SOFT or unicodedata.category(c) == "Zs"
    return c if soft and not blank else f"<i class=u>U+{ord(c):04X}</i>"
