"""What a person is told about an error: its own sentence, or what to do about a disk, a database, or us."""

from __future__ import annotations

from safetensors import SafetensorError

from sae_backend import faults, intake, storage, store
from sae_backend.core.checkpoints import CheckpointError
from sae_backend.core.language_model import LanguageModelError
from sae_backend.core.run import RunError

HELPFUL = (
    CheckpointError, LanguageModelError, RunError, intake.IntakeError, storage.StorageError, store.StoreError
)  # fmt: skip


def sentence(error: Exception) -> str:
    """One sentence or two that say what to do."""
    if isinstance(error, HELPFUL):
        return str(error)
    if isinstance(error, (OSError, SafetensorError)):
        return storage.current().explain(error)
    if isinstance(error, faults.DATABASE):
        return faults.sentence(error)
    return f"{type(error).__name__}: {error}. This is a fault of ours; the worker's log has its traceback"
