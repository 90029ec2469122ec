"""Text to contexts, and the vocabulary's own bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sae_backend.core import contexts
from sae_backend.core.contexts import Contexts, tokenize, vocabulary
from tests.core.small import SEPARATOR, byte_tokenizer

DOCUMENTS = [("a", "hello world"), ("b", ""), ("c", "xyz"), ("d", "naïve – 日本語 🙂"), ("e", "0123456789" * 5)]


def decoded(cut: Contexts, tokenizer: Any) -> str:
    """The contexts' text, end to end, BOS left out."""
    begin = int(tokenizer.bos_token_id is not None)
    tokens, _ = vocabulary(tokenizer, len(tokenizer))
    return b"".join(tokens[i] for i in cut.tokens[:, begin:].ravel().tolist()).decode("utf-8", "replace")


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama's arrangement: ▁ for spaces, <0xE6> for bytes of characters that are no tokens."""
    spelled = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab"]
    vocab = {token: i for i, token in enumerate(spelled)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def neox() -> PreTrainedTokenizerFast:
    """GPT-NeoX's arrangement: runs of spaces are added tokens that are not special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("   "), AddedToken("é")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR)


@pytest.mark.parametrize("bos", [True, False])
def test_windows_hold_the_documents_end_to_end_joined_by_separators(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos)
    cut = tokenize(DOCUMENTS, tokenizer, 16)
    whole = "".join(text + SEPARATOR for _, text in DOCUMENTS).encode()
    joined = decoded(cut, tokenizer).encode()
    assert whole.startswith(joined)
    # one token a byte but for the separators: only the last, incomplete window is left out
    separators = len(SEPARATOR) - 1
    n_tokens = len(whole) - len(DOCUMENTS) * separators
    assert len(cut.tokens) == n_tokens // (16 - bos)
    assert cut.tokens.shape[1] == 16
    assert cut.tokens.dtype == np.uint32
    assert (cut.tokens[:, 0] == tokenizer.eos_token_id).all() or not bos
    assert cut.names == [name for name, _ in DOCUMENTS]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("abé🙂", max_size=12), min_size=1, max_size=90),
    st.integers(2, 20),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 300)),
)
def test_a_windows_document_and_position_are_those_of_its_first_token_that_is_no_separator(
    texts: list[str], ctx_len: int, bos: bool, max_tokens: int | None
) -> None:
    tokenizer = byte_tokenizer(bos)
    cut = tokenize([(str(i), t) for i, t in enumerate(texts)], tokenizer, ctx_len, max_tokens)
    stream = [(d, p, b) for d, t in enumerate(texts) for p, b in enumerate([*t.encode(), None])]
    width = ctx_len - bos
    full = len(stream) // width
    assert len(cut.tokens) == (full if max_tokens is None else min(full, max(1, max_tokens // ctx_len)))
    for c in range(len(cut.tokens)):
        following = [(d, p) for d, p, b in stream[c * width : len(cut.tokens) * width] if b is not None]
        if following:
            assert (cut.document[c], cut.position[c]) == following[0]
        assert 0 <= cut.document[c] < len(cut.names)


def test_max_tokens_stops_reading_documents() -> None:
    read = []

    def endless() -> Any:
        while True:
            read.append(len(read))
            yield str(len(read)), "x" * 50

    cut = tokenize(endless(), byte_tokenizer(), 11, 100)
    assert cut.tokens.shape == (9, 11)
    assert len(cut.names) == 2
    assert len(read) <= 64


def test_no_documents_give_no_contexts() -> None:
    cut = tokenize([], byte_tokenizer(), 16)
    assert cut.tokens.shape == (0, 16)
    assert cut.names == []


@pytest.mark.parametrize("make", [byte_tokenizer, sentencepiece, neox])
@pytest.mark.parametrize("text", ["ab a  b", "naïve 日本語 🙂", "a   b\n\tab é ▁"])
def test_the_bytes_of_tokens_joined_give_the_text_back(make: Any, text: str) -> None:
    tokenizer = make()
    tokens, _ = vocabulary(tokenizer, len(tokenizer))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = text.replace("▁", " ") if make is sentencepiece else text  # SentencePiece cannot tell them apart
    assert b"".join(tokens[i] for i in ids).decode() == expected


def test_a_part_of_a_character_keeps_its_byte() -> None:
    for tokenizer in (byte_tokenizer(), sentencepiece()):
        tokens, special = vocabulary(tokenizer, len(tokenizer))
        assert {bytes([b]) for b in range(256)} <= {t for t, s in zip(tokens, special, strict=True) if not s}


def test_special_tokens_are_flagged_and_spelled_and_added_text_is_not_special() -> None:
    tokens, special = vocabulary(neox(), len(neox()))
    by_text = dict(zip(tokens, special, strict=True))
    assert by_text[SEPARATOR.encode()]
    assert not by_text[b"   "]
    assert not by_text["é".encode()]
    assert sum(special) == 1
    tokens, special = vocabulary(sentencepiece(), len(sentencepiece()))
    assert [t for t, s in zip(tokens, special, strict=True) if s] == [b"<unk>", b"<s>", b"</s>"]


def test_padding_of_the_vocabulary_is_special_and_empty() -> None:
    tokens, special = vocabulary(byte_tokenizer(), 300)
    assert len(tokens) == len(special) == 300
    assert tokens[257:] == [b""] * 43
    assert all(special[256:])


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.text("ab", max_size=9), max_size=200), st.integers(2, 9), st.booleans(), st.integers(1, 200)
)
def test_blocks_end_to_end_are_the_whole(texts: list[str], ctx_len: int, bos: bool, block: int) -> None:
    tokenizer, documents = byte_tokenizer(bos), [(str(i), t) for i, t in enumerate(texts)]
    whole = tokenize(documents, tokenizer, ctx_len)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contexts, "_BLOCK", block)
        patch.setattr(contexts, "_BATCH", 3)
        blocks = list(contexts.stream(documents, tokenizer, ctx_len))
        cut = tokenize(documents, tokenizer, ctx_len)
    for field in ("tokens", "document", "position"):
        np.testing.assert_array_equal(getattr(cut, field), getattr(whole, field))
    assert cut.names == whole.names == [name for name, _ in documents]
    for earlier in range(len(blocks)):  # whoever stores a block has the names of its documents
        begun = sum(len(block.names) for block in blocks[: earlier + 1])
        assert blocks[earlier].document.max(initial=-1) < begun


def test_texts_under_one_name_are_pieces_of_one_document() -> None:
    tokenizer = byte_tokenizer()
    cut = tokenize([("a", "hello "), ("a", "world"), ("b", "xyz" * 9)], tokenizer, 8)
    assert decoded(cut, tokenizer).startswith(f"hello world{SEPARATOR}xyz") and cut.names == ["a", "b"]
    assert list(cut.position[:2]) == [0, 7]  # places are those in the whole document


def test_separators_that_no_document_follows_are_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "_MOST_HELD", 100)
    monkeypatch.setattr(contexts, "_BLOCK", 10)
    blocks = contexts.stream(((str(i), "") for i in range(1000)), byte_tokenizer(), 8)
    assert len(next(blocks).tokens) < 50


def test_few_long_documents_are_not_tokenized_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "_BATCH_TEXT", 100)
    sizes = [sum(len(text) for _, text in batch) for batch in contexts._batches([("x", "y" * 60)] * 64)]
    assert max(sizes) == 120 and sum(sizes) == 64 * 60
