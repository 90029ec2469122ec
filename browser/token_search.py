"""Which entries of a vocabulary somebody means by the text of a token."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from browser.tokens import Vocabulary

FEW = 20  # times as many are looked at as are shown
_SIGNS = str.maketrans({"·": " ", "↵": "\n", "⇥": "\t"})  # as pages show them


def named(vocabulary: Vocabulary, words: str) -> tuple[int, ...]:
    """Ids of the tokens of this text, ascending.

    A space before or after it and the case of ASCII letters do not matter, unless it stands in double quotes: then it
    is the token, letter by letter. The signs · ↵ ⇥ are read as what they stand for.
    """
    text = words.translate(_SIGNS).encode("utf-8", "replace")
    if len(words) > 2 and words[0] == words[-1] == '"':
        return tuple(_entries(vocabulary.joined, vocabulary, text[1:-1]))
    bare = text.strip(b" ").lower()
    if not bare:
        return tuple(_entries(vocabulary.joined, vocabulary, text))
    lowered = vocabulary.joined.lower()
    spellings = (bare, b" " + bare, bare + b" ", b" " + bare + b" ")
    return tuple(sorted({i for spelt in spellings for i in _entries(lowered, vocabulary, spelt)}))


def beginning(vocabulary: Vocabulary, words: str, most: int) -> tuple[int, ...]:
    """Up to so many tokens that begin so, a space before it or not, in any case; the shortest first."""
    text = words.translate(_SIGNS).encode("utf-8", "replace").strip(b" ").lower()
    if not text:
        return ()
    lowered, found = vocabulary.joined.lower(), list[int]()
    for spelt in (b" " + text, text):
        at = -1
        while (at := lowered.find(b"\xff" + spelt, at + 1)) >= 0 and len(found) < FEW * most:
            found.append(bisect_left(vocabulary.starts, at + 1))
    return tuple(sorted(found, key=lambda i: (len(vocabulary.tokens[i]), i))[:most])


def _entries(joined: bytes, vocabulary: Vocabulary, text: bytes) -> Iterator[int]:
    """Each place where the bytes of a text are all that stands between two separators."""
    wanted, at = b"\xff" + text + b"\xff", -1
    while (at := joined.find(wanted, at + 1)) >= 0:
        yield bisect_left(vocabulary.starts, at + 1)
