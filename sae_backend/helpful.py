"""What a person is told about an error: its own sentence, or what to do about a disk, a database, or us."""

from __future__ import annotations

from safetensors import SafetensorError

from sae_backend import faults, intake, storage, store
from sae_backend.additions.errors import AdditionError
from sae_backend.comparisons.errors import ComparisonError
from sae_backend.core.checkpoints import CheckpointError
from sae_backend.core.hub import HubError
from sae_backend.core.language_model import LanguageModelError
from sae_backend.core.run import RunError
from sae_backend.core.text import TextError

HELPFUL = (
    CheckpointError, LanguageModelError, RunError, TextError, HubError, intake.IntakeError, AdditionError,
    ComparisonError, storage.StorageError, store.StoreError,
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
