"""What can go wrong with a checkpoint on its way in; every message is a sentence that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class IntakeError(Exception):
    """Something that cannot be done with an import as it is."""

    kind = "not possible"


class Malformed(IntakeError):
    """Asked for in a way that makes no sense."""

    kind = "malformed"


class TooLarge(IntakeError):
    """More than an import, or its owner, may have."""

    kind = "too large"


class TooMany(IntakeError):
    """More imports than a person may have at once, or begin in an hour."""

    kind = "too many"


class Full(IntakeError):
    """No room on the server; what has arrived is kept."""

    kind = "no room"


class Unavailable(IntakeError):
    """The place that workers share cannot be reached now; what has arrived is kept."""

    kind = "unavailable"


class Busy(IntakeError):
    """Another request is writing the same file."""

    kind = "busy"


class WrongOffset(IntakeError):
    """Bytes for another place than where the file ends."""

    kind = "wrong offset"


class Damaged(IntakeError):
    """Bytes that are not those that their sender meant; they are not kept."""

    kind = "damaged"


class Gone(IntakeError):
    """A file whose bytes were deleted."""

    kind = "gone"


def full(error: OSError) -> Full:
    """What to say where a disk of the web server is full; any other error goes on."""
    if error.errno not in OUT_OF_ROOM:
        raise error
    return Full("the server has no room for this now: try again later")


@contextmanager
def explained() -> Iterator[None]:
    """Say what to do where a worker's disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in OUT_OF_ROOM:
            raise Full("the worker has no room to read this checkpoint: check it again once there is some") from error
        raise
