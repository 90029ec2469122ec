"""Tokens become readable text without losing a byte, a boundary or an escape."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from browser.tokens import Line, Vocabulary, chip, direction, groups, level, strings, units

# Building the table of all characters can take a second on a busy machine.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ANY_BYTES = st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=12)


@st.composite
def divided_text(draw: st.DrawFn) -> list[bytes]:
    """Real text cut into tokens anywhere, within characters too."""
    data = draw(st.text(min_size=1, max_size=20)).encode("utf-8", "replace")
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=8)))
    return [t for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if (t := data[a:b])]


class Reader(HTMLParser):
    """What a browser makes of the markup, and the text that the page's script copies from it."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.raw, self.spans, self.kept, self.glyph = "", 0, 0, ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        whole = given.get("data-r", given.get("data-ch"))
        if self.kept:
            self.kept += 1
        elif whole is not None:
            self.raw, self.kept = self.raw + whole, 1
        elif tag == "i":
            self.glyph = given["class"] or ""
        self.spans += tag == "span" and given.get("class") != "bys"

    def handle_endtag(self, tag: str) -> None:
        if self.kept:
            self.kept -= 1
        elif tag == "i":
            self.glyph = ""

    def handle_data(self, data: str) -> None:
        if self.kept:
            return
        if self.glyph == "u":
            self.raw += chr(int(data[2:], 16)) if data.startswith("U+") else chr(ord(data) - 0x2400)
        else:
            self.raw += {"nl": "\n", "tb": "\t"}.get(self.glyph, data)


def row(tokens: list[bytes], acts: list[float] | None = None, peak: int = 0, special: bool = False) -> str:
    vocabulary = Vocabulary(tokens, [special] * len(tokens))
    ids = list(range(len(tokens)))
    line = Line(acts or [0.0] * len(ids), peak, 10.0, spaces=True)
    return "".join(u.html for u in units(vocabulary, ids, line))


@CALM
@given(st.one_of(ANY_BYTES, divided_text()), st.booleans())
def test_the_text_copied_from_a_row_is_its_bytes_decoded(tokens: list[bytes], special: bool) -> None:
    read = Reader(row(tokens, special=special))
    assert read.raw == b"".join(tokens).decode("utf-8", "replace")
    assert read.spans == len(tokens)


@CALM
@given(st.one_of(ANY_BYTES, divided_text()))
def test_groups_partition_the_tokens_and_join_to_the_text(tokens: list[bytes]) -> None:
    found = groups(tokens)
    assert [g.start for g in found] == [0, *(g.stop for g in found[:-1])]
    assert found[-1].stop == len(tokens)
    assert "".join(g.text for g in found) == b"".join(tokens).decode("utf-8", "replace")
    vocabulary = Vocabulary(tokens, [False] * len(tokens))
    assert "".join(strings(vocabulary, range(len(tokens)))) == b"".join(tokens).decode("utf-8", "replace")


@CALM
@given(st.binary(max_size=8), st.booleans())
def test_a_chip_is_never_invalid_whatever_the_bytes(token: bytes, special: bool) -> None:
    markup = chip(Vocabulary([token], [special]), 0, 3)
    markup.encode("utf-8")
    assert markup.count("<span") == 1
    assert "l3" in markup


def test_a_character_in_three_tokens_is_a_group_of_hexadecimal_cells() -> None:
    markup = row([b" \xf0\x9f", b"\x8c", b"\x99", b" and"], [6.2, 0.0, 9.9, 0.0], peak=2)
    assert markup == (
        '<span class=bys data-ch="🌙" data-r=" 🌙"><span class="l5 s by" data-a=6.2> F0 9F</span>'
        '<span class=by>8C</span><span class="l8 pk by" data-a=9.9>99</span></span><span class=s> and</span>'
    )


def test_text_around_a_divided_character_stays_readable() -> None:
    assert ">日 E6 9C</span>" in row(["日".encode() + b"\xe6\x9c", b"\x88"])


def test_bytes_that_are_no_character_are_shown_as_bytes() -> None:
    assert row([b"\xe2\x82"]) == '<span class=by data-r="\ufffd">E2 82</span>'


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b"<script>alert('&\")", "&lt;script&gt;alert(&#x27;&amp;&quot;)"),
        (b"\n\n", "<i class=nl>↵</i><i class=nl>↵</i>"),
        (b",\t", ",<i class=tb>⇥</i>"),
        (b"\r", "<i class=u>␍</i>"),
        ("\ufe0f".encode(), "<i class=u>U+FE0F</i>"),
        ("a\u202eb".encode(), "a<i class=u>U+202E</i>b"),
        ("می\u200cرود".encode(), "می\u200cرود"),
        ("\u00a0".encode(), "<i class=u>U+00A0</i>"),
    ],
)
def test_every_character_is_escaped_or_seen(token: bytes, shown: str) -> None:
    assert f">{shown}</span>" in row([token])


def test_a_leading_space_and_a_long_token_are_marked() -> None:
    assert row([b" Moon"]) == "<span class=s> Moon</span>"
    unmarked = units(Vocabulary([b" Moon"], [False]), [0], Line([0.0], 0, 1.0))
    assert unmarked[0].html == "<span> Moon</span>"
    assert row([b"=" * 25]).startswith("<span class=lng>")
    assert row([b"=" * 24]).startswith("<span>")


def test_special_tokens_are_pills_and_unknown_ids_say_so() -> None:
    vocabulary = Vocabulary([b"<|endoftext|>"], [True])
    assert chip(vocabulary, 0) == (
        '<span class="tki sp"><i class=u data-r="&lt;|endoftext|&gt;">endoftext</i></span>'
    )
    assert ">id 7</i>" in chip(vocabulary, 7)


def test_a_row_of_arabic_runs_from_right_to_left_and_one_word_of_it_does_not() -> None:
    assert direction("في كل شهر") == "rtl"
    assert direction("the word قمر means moon") == ""
    assert direction("plain") == ""


def test_levels_are_linear_in_activation_over_the_maximum() -> None:
    assert [level(a, 8.0) for a in (0.0, 0.001, 1.0, 1.001, 4.5, 8.0, 8.01)] == [0, 1, 1, 2, 5, 8, 8]
