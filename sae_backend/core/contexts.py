"""Text to token contexts, and the vocabulary's own bytes for display."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BATCH, _BATCH_TEXT = 64, 1 << 20  # documents, or characters of them, given to the tokenizer at once
_BLOCK = 1 << 18  # tokens cut into contexts at once
_MOST_HELD = 1 << 22  # of separators that no document follows
_SPACE = "▁"  # SentencePiece's


@dataclass(frozen=True)
class Contexts:
    """Consecutive windows of the documents' tokens, each begun by BOS where the tokenizer has one.

    Documents are joined by the separator token; a window may span several. The last, incomplete window is left out.
    """

    tokens: npt.NDArray[np.uint32]  # [n ctx_len]
    document: npt.NDArray[np.int32]  # [n] document of the first token after BOS that is not special
    position: npt.NDArray[np.int32]  # [n] that token's place in its document
    names: list[str]  # of all documents begun, by number


def tokenize(
    documents: Iterable[tuple[str, str]], tokenizer: Any, ctx_len: int, max_tokens: int | None = None
) -> Contexts:
    """Cut (name, text) documents into contexts, stopping once max_tokens positions are filled."""
    blocks = list(stream(documents, tokenizer, ctx_len, max_tokens))
    empty = np.zeros(0, np.int32)
    return Contexts(
        np.concatenate([np.zeros((0, ctx_len), np.uint32), *(block.tokens for block in blocks)]),
        np.concatenate([empty, *(block.document for block in blocks)]),
        np.concatenate([empty, *(block.position for block in blocks)]),
        [name for block in blocks for name in block.names],
    )


def stream(
    documents: Iterable[tuple[str, str]], tokenizer: Any, ctx_len: int, max_tokens: int | None = None
) -> Iterator[Contexts]:
    """The same block by block, each with the names of the documents begun in it; no more than a few are in memory.

    Texts that follow each other under one name are pieces of one document.
    """
    bos, separator = tokenizer.bos_token_id, _separator(tokenizer)
    width = ctx_len - (bos is not None)
    wanted = None if max_tokens is None else max(1, max_tokens // ctx_len) * width
    held = _Held(width, separator, wanted)
    for batch in _batches(documents):
        encoded = tokenizer([text for _, text in batch], add_special_tokens=False, verbose=False)["input_ids"]
        if not all(held.take(name, ids) for (name, _), ids in zip(batch, encoded, strict=True)):
            break
        if held.waiting >= _BLOCK:
            yield from held.blocks(bos)
    held.end_document()
    yield from held.blocks(bos, last=True)


def _separator(tokenizer: Any) -> int | None:
    token = tokenizer.eos_token_id
    return tokenizer.bos_token_id if token is None else token


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[1])
        if len(batch) == _BATCH or size >= _BATCH_TEXT:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Held:
    """The tokens of the documents end to end, from the first that no window has been cut from yet."""

    def __init__(self, width: int, separator: int | None, wanted: int | None) -> None:
        self._width, self._separator, self._wanted = width, separator, wanted
        self._ids: list[npt.NDArray[np.uint32]] = []
        self._base = self._total = 0  # places in the whole of the first held token, and of the next to come
        self._starts: list[int] = []  # of documents from number self._first on
        self._first = 0
        self._names: list[str] = []  # of documents that no block has named yet
        self._open: str | None = None  # the document whose end is not known

    @property
    def waiting(self) -> int:
        return self._total - self._base

    def take(self, name: str, ids: Sequence[int]) -> bool:
        """Add a document or its next piece; False once there are as many tokens as wanted."""
        if name != self._open:
            self.end_document()
        if self._wanted is not None and self._total >= self._wanted:
            return False
        if name != self._open:
            self._open = name
            self._starts.append(self._total)
            self._names.append(name)
        self._add(np.array(ids, dtype=np.uint32))
        return True

    def end_document(self) -> None:
        if self._open is not None and self._separator is not None:
            self._add(np.array([self._separator], np.uint32))
        self._open = None

    def _add(self, ids: npt.NDArray[np.uint32]) -> None:
        self._ids.append(ids)
        self._total += len(ids)

    def blocks(self, bos: int | None, last: bool = False) -> Iterator[Contexts]:
        """The windows that are full and whose document is known; at the end, all that are full."""
        ids = np.concatenate(self._ids) if self._ids else np.zeros(0, np.uint32)
        if self._wanted is not None:
            ids = ids[: max(0, self._wanted - self._base)]
        ordinary = np.flatnonzero(ids != self._separator) if self._separator is not None else np.arange(len(ids))
        n = len(ids) // self._width
        if not last and len(ids) < _MOST_HELD:  # windows of separators alone wait for the document behind them
            known = 0 if not len(ordinary) else int(ordinary[-1]) // self._width + 1
            n = min(n, known)
        if n or (last and self._names):
            yield self._cut(ids, ordinary, n, bos)

    def _cut(self, ids: npt.NDArray[np.uint32], ordinary: npt.NDArray[np.int64], n: int, bos: int | None) -> Contexts:
        windows = ids[: n * self._width].reshape(n, self._width)
        if bos is not None:
            windows = np.concatenate([np.full((n, 1), bos, np.uint32), windows], axis=1)
        document, position = self._places(len(ids), ordinary, n)
        names, self._names = self._names, []
        self._ids, self._base = [ids[n * self._width :]], self._base + n * self._width
        passed = max(0, int(np.searchsorted(self._starts, self._base, side="right")) - 1)
        self._starts, self._first = self._starts[passed:], self._first + passed
        return Contexts(np.ascontiguousarray(windows), document, position, names)

    def _places(
        self, length: int, ordinary: npt.NDArray[np.int64], n: int
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Document and position of each window's first token that is no separator; empty documents leave several."""
        ahead = np.searchsorted(ordinary, np.arange(n, dtype=np.int64) * self._width)
        first = np.append(ordinary, length - 1)[ahead] + self._base  # the last place where only separators follow
        starts = np.array(self._starts, np.int64)
        local = np.searchsorted(starts, first, side="right") - 1
        return (self._first + local).astype(np.int32), (first - starts[local]).astype(np.int32)


def vocabulary(tokenizer: Any, d_vocab: int) -> tuple[list[bytes], list[bool]]:
    """Each token's own bytes in id order, parts of characters included, and whether it is special.

    `tokenizer.decode` of one id loses incomplete UTF-8, so the bytes are taken from the vocabulary's spelling:
    byte-level BPE writes a byte as a printable character, SentencePiece as <0xE6>. Added tokens are spelled as they
    are and need not be special: GPT-NeoX adds runs of spaces.
    """
    added = tokenizer.added_tokens_decoder
    special = set(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}
    spelled = tokenizer.convert_ids_to_tokens(list(range(min(d_vocab, len(tokenizer)))))
    spelled += [None] * (d_vocab - len(spelled))
    byte_of = _byte_level() if _is_byte_level(tokenizer) else None
    literal = special if byte_of is None else special | set(added)
    tokens = [_token_bytes(s, i in literal, byte_of) for i, s in enumerate(spelled)]
    return tokens, [i in special or s is None for i, s in enumerate(spelled)]


def _token_bytes(spelling: str | None, literal: bool, byte_of: dict[str, int] | None) -> bytes:
    if spelling is None:
        return b""
    if literal:
        return spelling.encode()
    if byte_of is not None and all(c in byte_of for c in spelling):
        return bytes(byte_of[c] for c in spelling)
    if len(spelling) == 6 and spelling.startswith("<0x") and spelling.endswith(">"):
        return bytes([int(spelling[3:5], 16)])
    return spelling.replace(_SPACE, " ").encode()


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in json.dumps(json.loads(backend.to_str()).get("decoder"))


def _byte_level() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}
