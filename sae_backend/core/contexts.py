"""Text to token contexts, and the vocabulary's own bytes for display."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BATCH = 64  # documents given to the tokenizer at once
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
    bos, separator = tokenizer.bos_token_id, _separator(tokenizer)
    width = ctx_len - (bos is not None)
    wanted = None if max_tokens is None else max(1, max_tokens // ctx_len) * width
    ids, starts, names = _token_stream(documents, tokenizer, separator, wanted)
    n = len(ids) // width
    windows = ids[: n * width].reshape(n, width)
    if bos is not None:
        windows = np.concatenate([np.full((n, 1), bos, np.uint32), windows], axis=1)
    document, position = _places(ids, starts, np.arange(n, dtype=np.int64) * width, separator)
    return Contexts(np.ascontiguousarray(windows), document, position, names)


def _separator(tokenizer: Any) -> int | None:
    token = tokenizer.eos_token_id
    return tokenizer.bos_token_id if token is None else token


def _token_stream(
    documents: Iterable[tuple[str, str]], tokenizer: Any, separator: int | None, wanted: int | None
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], list[str]]:
    pieces: list[npt.NDArray[np.uint32]] = []
    starts, names, total = [], [], 0
    tail = [] if separator is None else [separator]
    for batch in _batches(documents):
        encoded = tokenizer([text for _, text in batch], add_special_tokens=False, verbose=False)["input_ids"]
        for (name, _), ids in zip(batch, encoded, strict=True):
            if wanted is not None and total >= wanted:
                break
            starts.append(total)
            names.append(name)
            pieces.append(np.array([*ids, *tail], dtype=np.uint32))
            total += len(pieces[-1])
        if wanted is not None and total >= wanted:
            break
    joined = np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)
    return joined[:wanted], np.array(starts, np.int64), names


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    for document in documents:
        batch.append(document)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _places(
    ids: npt.NDArray[np.uint32], starts: npt.NDArray[np.int64], at: npt.NDArray[np.int64], separator: int | None
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Document and position of each window's first token that is no separator; empty documents leave several."""
    ordinary = np.flatnonzero(ids != separator) if separator is not None else np.arange(len(ids))
    ahead = np.searchsorted(ordinary, at)
    first = np.append(ordinary, len(ids) - 1)[ahead]  # the last place where only separators follow
    document = np.searchsorted(starts, first, side="right") - 1
    return document.astype(np.int32), (first - starts[document]).astype(np.int32)


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
