"""Memory that does not suffice, on the host or an accelerator, told from other errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

A = TypeVar("A")


def is_shortage(error: BaseException) -> bool:
    """torch says so in a class of its own on an accelerator, and in words only on the host."""
    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in said


def if_it_fits(compute: Callable[[], A]) -> A | None:
    """What it returns; None where memory does not suffice. Other errors are raised."""
    try:
        return compute()
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        return None
