"""Documents from files: plain text, JSON lines and Parquet, packed or not, alone or in folders. None is held whole.

A document longer than PIECE comes in pieces, one after the other under the same name.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

Documents = Iterator[tuple[str, str]]
PIECE = 1 << 20  # characters of a document given on at once
LONGEST_LINE = 1 << 26  # bytes of one line of JSON
LARGEST_COLUMN = 4 << 30  # bytes of one column of one row group of a Parquet file, unpacked
PACKED = (".gz", ".zst")
JSON_LINES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (".txt", *JSON_LINES, ".parquet")  # that say what a file holds; any other is read as text
USUAL_FIELDS = ("text", "content", "body", "raw_content", "document", "code")
BOMB_BYTES, BOMB_RATIO = 1 << 28, 200  # no text packs so well: what unpacks to more was made to fill a disk


class TextError(Exception):
    """Text that cannot be read, with a sentence that says what to do."""


def documents(path: Path, field: str = "", suffixes: tuple[str, ...] = (), name: str = "") -> Documents:
    """(name, text) of each document, in a stable order; `name` is a file's, where its path does not say it.

    `field` is that of JSON lines or the column of Parquet with the text; without it, the usual ones are looked for.
    """
    if path.is_dir():
        yield from _folder(path, field, suffixes)
    elif path.is_file():
        yield from _file(path, field, name or path.name)
    else:
        raise TextError(f"{path} is neither a file nor a folder")


def kind(name: str) -> str:
    """The suffix that says how a file is read: one of SUFFIXES, or nothing."""
    lower = name.lower()
    for packed in PACKED:
        lower = lower.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")


def _folder(root: Path, field: str, suffixes: tuple[str, ...]) -> Documents:
    files = sorted(p for p in root.rglob("*") if p.is_file() and (not suffixes or p.name.endswith(suffixes)))
    if not files:
        raise TextError(f"{root} holds no files{' ending in ' + ', '.join(suffixes) if suffixes else ''}")
    for path in files:
        yield from _file(path, field, str(path.relative_to(root)))


def _file(path: Path, field: str, name: str) -> Documents:
    how = kind(name)
    if how == ".parquet":
        yield from _parquet(path, field, name)
        return
    with _opened(path, name) as file:
        if how in JSON_LINES:
            yield from _json_lines(file, field, name)
        else:
            yield from ((name, piece) for piece in pieces(_decoded(file, name)))


# ---- packed files ------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where its name says that they are packed."""
    with path.open("rb") as raw:
        try:
            yield io.BufferedReader(_Unpacked(raw, name), 1 << 16) if name.lower().endswith(PACKED) else raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise TextError(f"{name} is damaged, or no .gz file: {error}") from error


class _Unpacked(io.RawIOBase):
    """The content of a .gz or .zst file, until it gives far more than any text would."""

    def __init__(self, raw: IO[bytes], name: str) -> None:
        self._raw, self._name, self._given = raw, name, 0
        self._inside = gzip.GzipFile(fileobj=raw) if name.lower().endswith(".gz") else _zstd(raw)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(len(buffer))
        self._given += len(data)
        if self._given > BOMB_BYTES and self._given > BOMB_RATIO * self._raw.tell():
            raise TextError(f"{self._name} unpacks to more than {BOMB_RATIO} times its size: that is no text")
        buffer[: len(data)] = data
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            return bytes(self._inside.read(size))
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile) or self._name.lower().endswith(".zst"):
                raise TextError(f"{self._name} is damaged, or not packed as its name says: {error}") from error
            raise


def _zstd(raw: IO[bytes]) -> Any:
    import pyarrow as pa  # heavy, and Python has no Zstandard of its own before 3.14

    return pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")


# ---- plain text --------------------------------------------------------------------------------------


def _decoded(file: IO[bytes], name: str) -> Iterator[str]:
    """The text of a file, chunk by chunk, with newlines as Python reads them."""
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    decoder, line = io.IncrementalNewlineDecoder(utf8, translate=True), 1
    while True:
        chunk = file.read(PIECE)
        try:
            yield decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            at = line + error.object[: error.start].count(b"\n")
            raise TextError(f"{name} is not UTF-8 text (line {at}): convert it, or name the suffixes to read") from None
        if not chunk:
            return
        line += chunk.count(b"\n")


def pieces(chunks: Iterable[str]) -> Iterator[str]:
    """A document's text in pieces of about PIECE characters, cut where a line or a word ends; one at least."""
    held, given = "", False
    for chunk in chunks:
        held += chunk
        while len(held) > PIECE:
            cut = max(held.rfind("\n", 1, PIECE), 0) or max(held.rfind(" ", 1, PIECE), 0) or PIECE
            yield held[:cut]
            held, given = held[cut:], True
    if held or not given:
        yield held


# ---- columns -----------------------------------------------------------------------------------------


def _column(there: Sequence[str], name: str) -> str:
    """The field that holds the text, of those that hold any."""
    usual = [field for field in USUAL_FIELDS if field in there]
    if usual or len(there) == 1:
        return (usual or list(there))[0]
    raise TextError(f"{name} does not say where its text is: {_named(there)}; say which column it is")


def _named(there: Sequence[str]) -> str:
    shown = ", ".join(repr(field[:60]) for field in there[:20])
    more = f" and {len(there) - 20} more" if len(there) > 20 else ""
    return f"it has text in {shown}{more}" if there else "it has no column of text"


def _json_lines(file: IO[bytes], field: str, name: str) -> Documents:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise TextError(f"line {number} of {name} is longer than {LONGEST_LINE >> 20} MB: give each document one")
        if not line.strip():
            continue
        row = _row(line, field, f"line {number} of {name}")
        field = field or _column(_texts(row), name)
        text = _cell(row, field, f"line {number} of {name}")
        if text is not None:
            yield from ((f"{name}:{number}", piece) for piece in pieces([text]))


def _row(line: bytes, field: str, where: str) -> dict[str, Any]:
    wanted = f"a JSON object with {f'a field {field!r}' if field else 'a text'}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TextError(f"{where} is not {wanted}: {json_fault(error)}") from error
    if not isinstance(row, dict):
        raise TextError(f"{where} is not {wanted}: a file of JSON has one object on each line")
    return row


def json_fault(error: Exception) -> str:
    """Why text could not be read as JSON; where Python says how to change Python, in words of ours."""
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    plain = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError))
    return str(error)[:200] if plain else "a number in it has thousands of digits"


def _cell(row: dict[str, Any], field: str, where: str) -> str | None:
    """A row's text; None where it is null."""
    if field not in row:
        raise TextError(f"{where} is not a JSON object with a field {field!r}: {_named(_texts(row))}")
    text = row[field]
    if text is not None and not isinstance(text, str):
        raise TextError(f"{field!r} in {where} is not text but {json.dumps(text)[:40]}: {_named(_texts(row))}")
    return None if text is None else text.encode("utf-8", "replace").decode()  # JSON may spell halves of characters


def _texts(row: dict[str, Any]) -> list[str]:
    return [key for key, value in row.items() if isinstance(value, str)]


def _parquet(path: Path, field: str, name: str) -> Documents:
    """Row group by row group; the reader never holds more than a few pages of one column."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, thrift_string_size_limit=1 << 28) as file:
            field = _text_column(file.schema_arrow, field, name)
            _refuse_bomb(file.metadata, field, name)
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if text is not None:
                        yield from ((f"{name}:{number}", piece) for piece in pieces([text]))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise TextError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0][:300]}") from error


def _text_column(schema: Any, field: str, name: str) -> str:
    import pyarrow.types as t

    there = [column.name for column in schema if t.is_string(column.type) or t.is_large_string(column.type)]
    if not field:
        return _column(there, name)
    if field not in there:
        what = f"is no text but {schema.field(field).type}" if field in schema.names else "is not there"
        raise TextError(f"the column {field!r} of {name} {what}: {_named(there)}")
    return field


def _refuse_bomb(metadata: Any, field: str, name: str) -> None:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for column in range(row_group.num_columns):
            chunk = row_group.column(column)
            if chunk.path_in_schema == field and chunk.total_uncompressed_size > LARGEST_COLUMN:
                raise TextError(f"row group {group} of {name} is too large to be read: write it with smaller ones")
