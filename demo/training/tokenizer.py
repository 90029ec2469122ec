"""Byte-level BPE of 4096 tokens that keeps a line break and the indentation after it together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.training import texts
from demo.training.settings import CTX_LEN, END_OF_TEXT, END_OF_TEXT_ID, VOCABULARY

# a line break with all white space around it | word | up to 3 digits | punctuation | trailing blanks | blanks
PIECES = r"\s*\n\s*| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train(sample: Iterable[str]) -> Tokenizer:
    """Learn the merges; end-of-text is id 0 and every byte has a token, so that any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def sample(folder: Path) -> list[str]:
    """The text that merges are learnt from: the demo data set twice, one file in four of packages."""
    lib, test, site = (texts.read(folder, part, "train") for part in texts.PARTS)
    return lib * 2 + test + site[::4]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as `transformers.AutoTokenizer` reads them."""
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=CTX_LEN, clean_up_tokenization_spaces=False, **special
    )
    wrapped.save_pretrained(folder)


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """All documents as one uint16 array, each followed by end-of-text."""
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(
            f"The text gave only {tokenizer.get_vocab_size()} of {VOCABULARY} tokens; use more text."
        )
    pieces = [np.empty(0, np.uint16)]
    for start in range(0, len(documents), 64):
        for encoding in tokenizer.encode_batch(documents[start : start + 64]):
            pieces.append(np.array([*encoding.ids, END_OF_TEXT_ID], dtype=np.uint16))
    return np.concatenate(pieces)
