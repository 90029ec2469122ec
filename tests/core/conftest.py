"""Tests of small sizes on one thread each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sae_backend.core.lanes import lanes


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Where other processes keep the cores busy, threads waiting for each other cost these sizes ten times their work.

    Lanes are made first: they are as many as torch had threads.
    """
    before = torch.get_num_threads()
    lanes(torch.device("cpu"))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
