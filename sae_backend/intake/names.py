"""Names of uploaded files: text of strangers, made into relative paths that can do no harm."""

from __future__ import annotations

import re
import unicodedata

MAX_SEGMENT, MAX_SEGMENTS = 100, 6
NAMELESS = "file"
LEADING = re.compile(r"^[\s.]+")  # together: ". .." less its first dot and space would climb


def cleaned(name: str) -> str:
    """A relative path of plain segments: what climbs, hides or cannot be printed is left out."""
    parts = (_segment(part) for part in re.split(r"[\\/]+", name))
    return "/".join([part for part in parts if part][-MAX_SEGMENTS:]) or NAMELESS


def _segment(part: str) -> str:
    printable = "".join(c for c in part if unicodedata.category(c)[0] != "C" and c not in '<>:"|?*')
    plain = LEADING.sub("", unicodedata.normalize("NFC", printable)).rstrip()
    stem, dot, suffix = plain.rpartition(".")
    if len(plain) > MAX_SEGMENT and dot:
        return f"{stem[: max(1, MAX_SEGMENT - len(suffix) - 1)]}.{suffix}"[:MAX_SEGMENT].rstrip()
    return plain[:MAX_SEGMENT].rstrip()


def collides(name: str, others: list[str]) -> str | None:
    """The other name that cannot lie beside this: the same but for case, or a file where it has a folder."""
    mine = name.casefold()
    for other in others:
        theirs = other.casefold()
        if theirs == mine or theirs.startswith(f"{mine}/") or mine.startswith(f"{theirs}/"):
            return other
    return None
