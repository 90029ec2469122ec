"""How long nothing may come from the hub: what counts as something."""

from __future__ import annotations

import pytest

from sae_backend.core import hub, silence
from sae_backend.core.silence import Silence, Silent


def test_only_bytes_that_were_not_there_before_end_a_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(silence.time, "monotonic", lambda: now[0])
    waiting, told, raised = Silence(10), list[int](), list[Exception]()
    bar = hub._reporting(told.append, raised, waiting)(initial=100)
    now[0] = 9
    bar.update(5)
    assert waiting.left == 10 and told == [105]
    now[0] = 18
    bar.update(-5)  # begun again from where it was
    bar.update(5)
    assert waiting.left == 1
    now[0] = 19
    with pytest.raises(Silent):
        bar.update(0)
    assert len(raised) == 1 and isinstance(raised[0], Silent)
