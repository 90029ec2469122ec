"""Checkpoints of other libraries: one module per format, each with recognises(source) and draft(source)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from ..detected import FORMATS, OPTIONS, Check, Detected, Option, Question
from ..sae import SparseAutoencoder
from . import (
    circuit_tracer,
    dictionary_learning,
    elsewhere,
    gemma_scope,
    gemma_scope_2,
    goodfire,
    llama_scope,
    lm_saes,
    matrices,
    openai,
    qwen_scope,
    saelens,
    sparsify,
    transcoder_circuits,
)
from .assembling import Draft, assemble, describe, settle
from .errors import CheckpointError
from .exporting import export
from .files import MAX_BYTES, Files, Source, list_files
from .overrides import overrides
from .settings import listed

__all__ = [
    "FORMATS", "OPTIONS", "Check", "CheckpointError", "Detected", "Option", "Question", "detect", "export",
    "list_files", "load",
]  # fmt: skip

READERS: dict[str, ModuleType] = {
    "elsewhere": elsewhere,
    "transcoder_circuits": transcoder_circuits,
    "saelens": saelens,
    "lm_saes": lm_saes,
    "goodfire": goodfire,
    "openai": openai,
    "llama_scope": llama_scope,
    "sparsify": sparsify,
    "gemma_scope_2": gemma_scope_2,
    "gemma_scope": gemma_scope,
    "dictionary_learning": dictionary_learning,
    "qwen_scope": qwen_scope,
    "matrices": matrices,
    "circuit_tracer": circuit_tracer,
}
"""Asked in this order; the first that recognises a file of weights reads it."""


def load(path: str | Path, *, max_bytes: int = MAX_BYTES, **options: Any) -> SparseAutoencoder:
    """Return the SAE in a file or folder; CheckpointError says in a sentence why not and what to do.

    What is given here wins over what the files say: OPTIONS lists it. max_bytes bounds the weights in float32.
    """
    return assemble(*_settled(path, options, max_bytes))


def detect(path: str | Path, *, max_bytes: int = MAX_BYTES, **options: Any) -> Detected:
    """Return what the keys, shapes and settings of a file or folder say, and what they leave open.

    Costs the reading of headers and settings, except of compressed NumPy archives.
    """
    return describe(*_settled(path, options, max_bytes))


def _settled(path: str | Path, options: dict[str, Any], max_bytes: int) -> tuple[Draft, Source]:
    try:
        source, reader = _choose(Files(Path(path), overrides(options), max_bytes))
        draft = reader.draft(source)
        settle(draft, source)
    except OSError as error:
        raise CheckpointError(
            f"The files cannot be read ({error.strerror}); check the path and its permissions."
        ) from None
    return draft, source


def _choose(files: Files) -> tuple[Source, ModuleType]:
    """Return the file of weights to read and its format: the one nearest to the top, where that is one."""
    found = [(source, reader) for source in files.sources() if (reader := _reader(source)) is not None]
    if not found:
        raise CheckpointError(files.describe())
    depth = found[0][0].name.count("/")
    near = [source.name for source, _ in found if source.name.count("/") == depth]
    if len(near) > 1:
        text = (
            f"There are {len(near)} checkpoints here ({listed(near)}); give the path of one of them, or say which file."
        )
        raise CheckpointError(text, Question("file", text, choices=tuple((name, name) for name in near)))
    return found[0]


def _reader(source: Source) -> ModuleType | None:
    if source.said.format is not None:
        return READERS[source.said.format]
    return next((reader for reader in READERS.values() if reader.recognises(source)), None)
