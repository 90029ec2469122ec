"""What L0 and FVU of a few thousand tokens say about a checkpoint."""

from __future__ import annotations

import math

import pytest

from sae_backend.core.trial import verdict


@pytest.mark.parametrize(
    ("l0", "fvu", "state", "words"),
    [
        (32.0, 0.2, "ok", "FVU 0.20 with 32.0 latents a token"),
        (32.0, 0.6, "warn", "explains little"),
        (32.0, 0.93, "fail", "FVU 0.93: hardly better than writing the mean everywhere, so it is probably read"),
        (32.0, 1.7, "fail", "worse than writing the mean"),
        (32.0, None, "fail", "cannot be compared"),
        (32.0, math.nan, "fail", "cannot be compared"),
        (0.0, 1.0, "fail", "No latent fires"),
        (300.0, 0.1, "fail", "300 of 1,024 latents fire on a token"),
        (None, None, "warn", "special tokens alone"),
    ],
)
def test_a_verdict_is_plain(l0: float | None, fvu: float | None, state: str, words: str) -> None:
    said = verdict(1024, 4000 if l0 is not None else 0, l0, fvu)
    assert said[0] == state and words in said[1]


def test_more_latents_than_a_run_allows_are_refused_however_wide_the_sae_is() -> None:
    assert verdict(1 << 20, 4000, 5000.0, 0.1)[0] == "fail"
