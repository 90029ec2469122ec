"""Documents from files: a folder of text files, one text file, or .jsonl with a text field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

Documents = Iterator[tuple[str, str]]


class TextError(Exception):
    """Text that cannot be read, with a sentence that says what to do."""


def documents(path: Path, field: str = "text", suffixes: tuple[str, ...] = ()) -> Documents:
    """(name, text) of each document, in a stable order."""
    if path.is_dir():
        yield from _folder(path, suffixes)
    elif path.is_file() and path.suffix == ".jsonl":
        yield from _json_lines(path, field)
    elif path.is_file():
        yield path.name, _read(path)
    else:
        raise TextError(f"{path} is neither a file nor a folder")


def _folder(root: Path, suffixes: tuple[str, ...]) -> Documents:
    files = sorted(p for p in root.rglob("*") if p.is_file() and (not suffixes or p.suffix in suffixes))
    if not files:
        raise TextError(f"{root} holds no files{' ending in ' + ', '.join(suffixes) if suffixes else ''}")
    for path in files:
        yield str(path.relative_to(root)), _read(path)


def _json_lines(path: Path, field: str) -> Documents:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                text = json.loads(line)[field]
            except (ValueError, KeyError, TypeError) as error:
                raise TextError(f"line {number} of {path} is not a JSON object with a field {field!r}") from error
            if not isinstance(text, str):
                raise TextError(f"{field!r} in line {number} of {path} is not text")
            yield f"{path.name}:{number}", text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text; convert it, or name the suffixes to read") from error
