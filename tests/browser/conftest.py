"""Fixtures of tests of pages."""

from __future__ import annotations

import pytest
from django.utils import timezone


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands still: what took how long is what a test says, wherever the machine pauses."""
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now)
