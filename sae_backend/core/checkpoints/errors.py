"""The one exception of this package."""


class CheckpointError(ValueError):
    """The files are not an SAE that can be read; the message is a sentence that says what to do."""
