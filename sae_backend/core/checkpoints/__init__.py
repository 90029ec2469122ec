"""Checkpoints of other libraries: one module per format, each with recognises(files) and convert(files)."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ..sae import SparseAutoencoder
from . import openai, saelens
from .errors import CheckpointError
from .reading import MAX_BYTES, Files, Overrides, list_files

__all__ = ["FORMATS", "CheckpointError", "list_files", "load"]

FORMATS: list[ModuleType] = [openai, saelens]
"""Asked in this order; the first that recognises the files converts them."""


def load(
    path: str | Path,
    *,
    hook_name: str | None = None,
    hook_name_out: str | None = None,
    model_name: str | None = None,
    k: int | None = None,
    input_norm: str | None = None,
    input_scale: float | None = None,
    max_bytes: int = MAX_BYTES,
) -> SparseAutoencoder:
    """Return the SAE in a file or folder; CheckpointError says in a sentence why not and what to do.

    What is given here wins over what the files say. max_bytes bounds the weights in float32.
    """
    overrides = Overrides(hook_name, hook_name_out, model_name, k, input_norm, input_scale)
    try:
        return _convert(Files(Path(path), overrides, max_bytes))
    except OSError as error:
        raise CheckpointError(
            f"The files cannot be read ({error.strerror}); check the path and its permissions."
        ) from None


def _convert(files: Files) -> SparseAutoencoder:
    for known in FORMATS:
        if known.recognises(files):
            return known.convert(files)
    names = ", ".join(known.NAME for known in FORMATS)
    raise CheckpointError(
        f"No known format. {files.describe()} Known are {names}; SAELens weights need their cfg.json."
    )
