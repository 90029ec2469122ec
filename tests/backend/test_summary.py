"""The figures of a run in words, for its log."""

from __future__ import annotations

from sae_backend import summary


def test_what_is_known_is_said() -> None:
    figures = {"l0": 31.96, "fvu": 0.0649, "ce": {"recovered": 0.9817}}
    assert summary.in_words(figures) == "measured: L0 32.0, FVU 0.065, CE recovered 98.2%"
    assert summary.in_words({**figures, "fvu": None, "ce": None}) == "measured: L0 32.0"
    assert summary.in_words({"l0": None, "fvu": None, "ce": None}) == "measured: nothing, for no token was counted"
