"""Checkpoints on their way in: from a browser, a program, the shell or the hub to the worker that imports them.

Free of torch but for what workers call. receiving.py takes bytes, steps.py a person's wishes, sources.py lays out what
a worker reads, from_hub.py downloads.
"""

from __future__ import annotations

from sae_backend.intake.cleaning import clean
from sae_backend.intake.errors import IntakeError
from sae_backend.intake.receiving import FOLDER, add_file, append, offset, receive, remove_file
from sae_backend.intake.sources import source_of
from sae_backend.intake.steps import ask, cancel, change, check, expires, open_import, save, start

__all__ = [
    "FOLDER", "IntakeError", "add_file", "append", "ask", "cancel", "change", "check", "clean", "expires", "offset",
    "open_import", "receive", "remove_file", "save", "source_of", "start",
]  # fmt: skip
