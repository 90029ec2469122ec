"""A few sets of tokens that every vocabulary has, by the bytes of its tokens: what logit effects are asked about.

Torch-free. Whatever changes a set's members changes VERSION, which every run keeps with the sizes of its sets.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

VERSION = 1
_ENGLISH = """
    a about above after again against all an and any are as at be because been before being below between both but by
    can could did do does down during each few for from had has have he her here him his how i if in into is it its
    just may me might more most must my no nor not of off on once only or other our out over own same shall she should
    so some such than that the their them then there these they this those through to too under until up us very was
    we were what when where which while who whom why will with would you your
"""
# of Python 3.11, spelled out so that the set does not depend on who computes it
_KEYWORDS = """
    False None True and as assert async await break class continue def del elif else except finally for from global if
    import in is lambda nonlocal not or pass raise return try while with yield
"""
_FUNCTION_WORDS, _PYTHON = frozenset(_ENGLISH.split()), frozenset(_KEYWORDS.split())
_ASCII_LETTERS, _PUNCTUATION = frozenset(string.ascii_letters), frozenset(string.punctuation)


@dataclass(frozen=True)
class TokenSets:
    """Which tokens of a vocabulary belong to each set."""

    names: tuple[str, ...]
    means: tuple[str, ...]
    #: What is in each, in a few words.
    member: npt.NDArray[np.bool_]
    #: [n_sets d_vocab]

    def described(self) -> dict[str, Any]:
        """What a run keeps of them, in the order of its packed columns."""
        sizes = self.member.sum(1).tolist()
        sets = [{"name": n, "means": m, "size": k} for n, m, k in zip(self.names, self.means, sizes, strict=True)]
        return {"version": VERSION, "d_vocab": self.member.shape[1], "sets": sets}

    def fitted(self, d_vocab: int) -> TokenSets:
        """The same for an unembedding that is padded beyond the vocabulary, or cut."""
        member = np.zeros((len(self.names), d_vocab), bool)
        n = min(d_vocab, self.member.shape[1])
        member[:, :n] = self.member[:, :n]
        return TokenSets(self.names, self.means, member)


def _bare(token: str) -> str:
    return token.lstrip(" ")


def _is_word_start(t: str) -> bool:
    return t.startswith(" ") and bool(_bare(t))


def _is_continuation(t: str) -> bool:
    return t[0].isalpha()


def _is_capitalised(t: str) -> bool:
    return _bare(t)[:1].isupper() and any(c.islower() for c in t)


def _is_upper(t: str) -> bool:
    return t.isupper() and sum(c.isalpha() for c in t) > 1


def _is_number(t: str) -> bool:
    return _bare(t).isascii() and _bare(t).isdecimal()


def _is_punctuation(t: str) -> bool:
    return bool(_bare(t)) and _PUNCTUATION.issuperset(_bare(t))


_SETS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("leading space", "a space and more: words from their beginning", _is_word_start),
    ("no leading space", "begins with a letter: mostly continuations of words", _is_continuation),
    ("capitalised", "first letter upper case, a later one lower case", _is_capitalised),
    ("upper case", "two letters or more, all upper case", _is_upper),
    ("digits", "only digits 0 to 9, after spaces if any", _is_number),
    ("punctuation", "only ASCII punctuation, after spaces if any", _is_punctuation),
    ("opening brackets", "has one of ( [ {", lambda t: not frozenset("([{").isdisjoint(t)),
    ("closing brackets", "has one of ) ] }", lambda t: not frozenset(")]}").isdisjoint(t)),
    ("whitespace", "only spaces, tabs and line breaks", str.isspace),
    ("line break", "has a line break", lambda t: "\n" in t or "\r" in t),
    ("non-ASCII", "has a character beyond ASCII", lambda t: not t.isascii()),
    ("function words", "English articles, pronouns, prepositions and the like", lambda t: _word(t) in _FUNCTION_WORDS),
    ("Python keywords", "the reserved words of Python", lambda t: _bare(t) in _PYTHON),
)
_PARTS = ("parts of characters", "bytes that are not whole characters (byte fallback)")


def _word(t: str) -> str:
    bare = _bare(t)
    return bare.lower() if _ASCII_LETTERS.issuperset(bare) else ""


def token_sets(tokens: Sequence[bytes], special: Sequence[bool]) -> TokenSets:
    """The sets of a vocabulary; special tokens and empty ones are in none."""
    member = np.zeros((len(_SETS) + 1, len(tokens)), bool)
    for i, (token, is_special) in enumerate(zip(tokens, special, strict=True)):
        if is_special or not token:
            continue
        try:
            text = token.decode()
        except UnicodeDecodeError:
            member[-1, i] = True
        else:
            member[:-1, i] = [has(text) for _, _, has in _SETS]
    names, means = zip(*((name, means) for name, means, _ in _SETS), strict=True)
    return TokenSets((*names, _PARTS[0]), (*means, _PARTS[1]), member)
