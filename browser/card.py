"""The picture of a latent or an SAE that other programs show beside a link to it: one PNG, in fonts kept here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1200, 630  # what those programs ask for
ROWS = 4  # contexts on it
_FONTS = Path(__file__).parent / "fonts"
_MARGIN, _COLUMN = 60, 500  # left and right of everything; where the strongest token of every context begins
_INK, _FAINT, _LINE, _SINK, _BAR, _ACT = "#14181d", "#626b76", "#c9ced3", "#f4f5f6", "#7f8993", "#c96a00"
_RAMP = ("#fff3da", "#ffe7b9", "#ffd993", "#ffc96b", "#fbb746", "#f3a324", "#ea8d0c", "#dd7a00")  # l1 … l8
_NO_GLYPH = "\U0010fffe"  # which no font has
_one = Lock()  # a drawing at a time: pictures are asked for by programs, which can come again; pages cannot wait
_PATIENCE = 1.0  # seconds that a request stands in line


class BusyError(Exception):
    """Others' pictures are being drawn; it is asked for again in a few seconds."""


@dataclass(frozen=True)
class Piece:
    """One token of a context, at a step of the ramp or 0."""

    text: str
    step: int


@dataclass(frozen=True)
class Line:
    """A context about its strongest token."""

    before: tuple[Piece, ...]
    after: tuple[Piece, ...]


@dataclass(frozen=True)
class Facts:
    """All that a card says."""

    title: str  # a latent's index, an SAE's name
    id: str
    of: str  # language model, hook point and SAE
    strongest: tuple[str, ...]
    figures: tuple[tuple[str, str], ...]
    bars: tuple[float, ...]  # heights of the histogram, per cent
    lines: tuple[Line, ...]
    note: str  # where there are no lines
    accent: float = 0.1  # share of the bars, from the right, that are amber as on the page


@lru_cache(maxsize=256)
def draw(facts: Facts) -> bytes:
    """The PNG; the latest stay in memory. Raises BusyError."""
    if not _one.acquire(timeout=_PATIENCE):
        raise BusyError
    try:
        image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        pen = ImageDraw.Draw(image)
        _head(pen, facts)
        _figures(pen, facts)
        _histogram(pen, facts)
        _contexts(pen, facts)
        out = BytesIO()
        image.save(out, "PNG")
    finally:
        _one.release()
    return out.getvalue()


@lru_cache(maxsize=16)
def _font(size: int, mono: bool = True) -> ImageFont.FreeTypeFont:
    name = "DejaVuSansMono.ttf" if mono else "DejaVuSans.ttf"
    return ImageFont.truetype(_FONTS / name, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def has_glyph(character: str) -> bool:
    """Whether the font of contexts can draw it."""
    font = _font(22)
    return character == " " or bytes(font.getmask(character)) != bytes(font.getmask(_NO_GLYPH))


def fitted(title: str) -> str:
    """As much of a title as there is room for: every letter is as wide."""
    most = int((WIDTH - 2 * _MARGIN) // _font(64).getlength("0"))
    return title if len(title) <= most else title[: most - 1] + "…"


def _head(pen: ImageDraw.ImageDraw, facts: Facts) -> None:
    for i in range(9):
        left, top = _MARGIN + 11 * (i % 3), 52 + 11 * (i // 3)
        pen.ellipse((left, top, left + 8, top + 8), _ACT if i in (1, 8) else _LINE)
    pen.text((_MARGIN + 46, 67), "latents", _INK, _font(26, mono=False), anchor="lm")
    pen.text((WIDTH - _MARGIN, 67), facts.id, _FAINT, _font(22), anchor="rm")
    pen.text((_MARGIN, 150), facts.title, _INK, _font(64), anchor="ls")
    x: float = _MARGIN + pen.textlength(facts.title, _font(64)) + 36
    for token in facts.strongest:
        x = _chip(pen, x, token)
    pen.text((_MARGIN, 198), _fitting(pen, facts.of, _font(24, mono=False)), _FAINT, _font(24, mono=False), anchor="ls")


def _chip(pen: ImageDraw.ImageDraw, x: float, token: str) -> float:
    """A token on a ground of its own; where the next one begins. None that would leave the picture."""
    font, width = _font(30), pen.textlength(token, _font(30))
    if x + width + 24 > WIDTH - _MARGIN:
        return x
    pen.rounded_rectangle((x, 108, x + width + 24, 158), 8, _RAMP[1])
    pen.text((x + 12, 134), token, _INK, font, anchor="lm")
    return x + width + 40


def _fitting(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.FreeTypeFont) -> str:
    room = WIDTH - 2 * _MARGIN
    while pen.textlength(text, font) > room:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _figures(pen: ImageDraw.ImageDraw, facts: Facts) -> None:
    pen.line((_MARGIN, 224, WIDTH - _MARGIN, 224), _LINE)
    width = (WIDTH - 2 * _MARGIN) / max(1, len(facts.figures))
    for i, (name, value) in enumerate(facts.figures):
        x = _MARGIN + i * width
        pen.text((x, 254), name, _FAINT, _font(20, mono=False), anchor="ls")
        pen.text((x, 292), value, _INK, _font(30, mono=False), anchor="ls")


def _histogram(pen: ImageDraw.ImageDraw, facts: Facts) -> None:
    """On a logarithmic axis of counts."""
    base, height = 410, 90
    pen.line((_MARGIN, base, WIDTH - _MARGIN, base), _BAR)
    width = (WIDTH - 2 * _MARGIN) / max(1, len(facts.bars))
    for i, share in enumerate(facts.bars):
        if share > 0:
            x = _MARGIN + i * width
            strongest = i >= (1 - facts.accent) * len(facts.bars)
            pen.rectangle((x + 1, base - height * share / 100, x + width - 2, base), _ACT if strongest else _BAR)


def _contexts(pen: ImageDraw.ImageDraw, facts: Facts) -> None:
    if facts.note:
        pen.text((_MARGIN, 470), facts.note, _FAINT, _font(24, mono=False), anchor="ls")
    for i, line in enumerate(facts.lines):
        _line(pen, 452 + 42 * i, line)


def _line(pen: ImageDraw.ImageDraw, y: int, line: Line) -> None:
    """Tokens outwards from the column, as long as there is room."""
    x = float(_COLUMN)
    for piece in line.after:
        x = _token(pen, x, y, piece)
    x = float(_COLUMN)
    for piece in reversed(line.before):
        x -= pen.textlength(piece.text, _font(22))
        _token(pen, x, y, piece)
    for left in (0, WIDTH - _MARGIN):  # what stands beyond the margins
        pen.rectangle((left, y - 18, left + _MARGIN, y + 18), "white")


def _token(pen: ImageDraw.ImageDraw, x: float, y: int, piece: Piece) -> float:
    end = x + pen.textlength(piece.text, _font(22))
    if end > 0 and x < WIDTH:
        if piece.step:
            pen.rectangle((x, y - 15, end, y + 15), _RAMP[piece.step - 1])
        pen.text((x, y), piece.text, _INK, _font(22), anchor="lm")
    return end
