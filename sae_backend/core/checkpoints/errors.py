"""The one exception of this package."""

from __future__ import annotations

from ..detected import Question


class CheckpointError(ValueError):
    """The files are not an SAE that can be read; the message is a sentence that says what to do."""

    def __init__(self, message: str, question: Question | None = None) -> None:
        """question: what a person could answer so that they can be read."""
        super().__init__(message)
        self.question = question
