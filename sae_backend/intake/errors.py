"""What can go wrong with a checkpoint on its way in; every message is a sentence that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class IntakeError(Exception):
    """Something that cannot be done with an import as it is."""


class Malformed(IntakeError):
    """Asked for in a way that makes no sense."""


class TooLarge(IntakeError):
    """More than an import, or its owner, may have."""


class TooMany(IntakeError):
    """More imports than a person may have at once, or begin in an hour."""


class Full(IntakeError):
    """No room on the server; what has arrived is kept."""


class Unavailable(IntakeError):
    """The place that workers share cannot be reached now; what has arrived is kept."""


class Busy(IntakeError):
    """Another request is writing the same file."""


class WrongOffset(IntakeError):
    """Bytes for another place than where the file ends."""


class Damaged(IntakeError):
    """Bytes that are not those that their sender meant; they are not kept."""


class Gone(IntakeError):
    """A file whose bytes were deleted."""


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a worker's disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_ROOM:
            raise Full("the worker has no room to read this checkpoint: check it again once there is some") from error
        raise
