"""Memory that a worker gives back and takes again with every batch, kept instead.

glibc returns freed blocks of some 100 kB and more to the kernel, which hands out new ones page by page, zeroed: in a
pass over text that is a fault per token and 5 % of the time. What is kept is what was needed at once, no more.
"""

from __future__ import annotations

import ctypes
from functools import cache

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MOST, _PAD = 2**30, 2**26  # bytes


@cache
def keep_freed() -> bool:
    """Have malloc keep what is freed, from here on and for the whole process; False where it cannot."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    options = {_TRIM_THRESHOLD: 2 * _MOST - 1, _TOP_PAD: _PAD, _MMAP_THRESHOLD: _MOST}
    return all(mallopt(option, value) == 1 for option, value in options.items())
