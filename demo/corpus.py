"""The demo data set: the source of the Python standard library, read from the interpreter that runs this.

Nothing is shipped or downloaded, it differs little between Python versions, and every line can be looked up.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

MIN_CHARS = 64
MAX_DIGIT_SHARE = 0.25
VALIDATION_PER_MILLE = 20
PACKAGE_DIRS = {"site-packages", "dist-packages"}
TEST_DIRS = {"test", "tests", "idle_test", "testing", "_testcapi"}
CHARMAP_MARKS = ("charmap_build", "decoding_table", "decoding_map")


def documents(root: Path | None = None) -> Iterator[tuple[str, str]]:
    """Yield (relative POSIX path, text) of each standard library file of the demo data set, sorted by path.

    Left out, each for a reason:
    tests, because Debian and Ubuntu do not install them and the text should be the same on every machine;
    character map tables (encodings/cp*.py) and files of more than a quarter digits, because rows of codes
    fill the examples of hundreds of latents and say nothing about language;
    `_sysconfigdata*`, because it records how one machine built Python;
    third-party packages, files under 64 characters, and files that are not UTF-8 or cannot be read;
    exact copies of a file already seen, because an example shown twice is one example.

    Line ends become "\\n" and tabs four columns, as in the text that the demo model was trained on.
    """
    for path, text in unique(sources(root or stdlib_root())):
        if not is_test(path) and not path.startswith("_sysconfigdata"):
            yield path, text


def stdlib_root() -> Path:
    """The running interpreter's standard library; in a virtual environment, that of its base Python."""
    return Path(sysconfig.get_path("stdlib"))


def is_validation(path: str) -> bool:
    """Whether the file is held out from training: 2 % of the paths, by hash, so that versions agree."""
    return int(sha256(path)[:8], 16) % 1000 < VALIDATION_PER_MILLE


def is_test(path: str) -> bool:
    """Whether any part of the path names a test: `unittest/test/…` goes and `unittest/case.py` stays."""
    return any(part in TEST_DIRS or part.startswith("test_") for part in PurePosixPath(path.lower()).parts)


def is_table(text: str) -> bool:
    """Whether the file is a character map or mostly digits: data, not source."""
    digits = sum(map(text.count, "0123456789"))
    return any(mark in text for mark in CHARMAP_MARKS) or digits > MAX_DIGIT_SHARE * len(text)


def sources(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (relative POSIX path, text) of every readable `.py` file that is no table, by path."""
    for path in python_files(root):
        text = read(root / path)
        if text is not None and len(text) >= MIN_CHARS and not is_table(text):
            yield path, text


def python_files(root: Path) -> list[str]:
    """Every `.py` path under root but installed packages'; links to directories are not followed."""
    if not root.is_dir():
        raise FileNotFoundError(f"No Python source at {root}; pass the folder of a standard library.")
    paths: list[Path] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in PACKAGE_DIRS]
        paths += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(path.relative_to(root).as_posix() for path in paths)


def read(path: Path) -> str | None:
    """The file's text with plain line ends and no tabs, or None if it is not UTF-8 or cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")  # universal newlines: CRLF and CR become LF
    except (OSError, UnicodeDecodeError):
        return None
    return text.expandtabs(4)


def unique(documents: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield the documents without those whose text came before under another path."""
    seen = set()
    for path, text in documents:
        digest = sha256(text)
        if digest not in seen:
            seen.add(digest)
            yield path, text


def sha256(text: str) -> str:
    """Hexadecimal SHA-256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
