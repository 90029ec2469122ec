"""The code of docs/notebook.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCUMENT = Path(__file__).parent.parent / "docs/notebook.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the document's code leaves behind."""
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    return names


def test_the_documents_code_reconstructs_the_hidden_states_of_its_sentence(names: dict[str, Any]) -> None:
    assert names["hidden"].shape == names["recon"].shape
    assert 0 < float(names["fvu"]) < 0.6


def test_its_canonical_activations_are_the_lengths_of_what_latents_write(names: dict[str, Any]) -> None:
    sae, acts, hidden = names["sae"], names["acts"], names["hidden"]
    dense = acts.dense()[-1]
    latent = names["latent"]
    without = dense.clone()
    without[latent] = 0
    change = sae.decode(dense[None], hidden[-1:]) - sae.decode(without[None], hidden[-1:])
    assert float(change.norm()) == pytest.approx(float(names["canonical"][-1, latent]), rel=1e-3)


def test_its_promoted_tokens_are_those_of_the_decoder_row(names: dict[str, Any]) -> None:
    effect = names["sae"].W_dec[names["latent"]] @ names["lm"].unembedding().weight
    assert names["promoted"] == np.argsort(-effect.numpy())[:10].tolist()


def test_the_code_is_short_and_no_line_is_long() -> None:
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 120
