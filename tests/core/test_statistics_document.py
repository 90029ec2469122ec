"""The worked examples of docs/statistics.md, run as they stand there against what the library computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from browser.figures import percentile
from browser.logit_classes import class_name
from browser.plots import l0_centiles
from sae_backend.core import baseline
from sae_backend.core.activations import Rows
from sae_backend.core.config import every
from sae_backend.core.decoder import features_per_dimension
from sae_backend.core.fidelity import Sums, basis, figures
from sae_backend.core.kernels import splitmix
from sae_backend.core.matching import MATCHED
from sae_backend.core.results import status_of
from sae_backend.core.stats import histograms, latent_stats
from sae_backend.packing import bin_edges
from sae_backend.series import recognised
from tests.core import worked

DOCUMENT = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()
EXAMPLES = re.findall(r"\*\*([^*]+)\.\*\*[^`]*```python\n(.*?)```", DOCUMENT, re.S)


def near(ours: Any, expected: Any) -> bool:
    return bool(np.allclose(ours, expected, rtol=1e-5, atol=1e-6))


KNOWN = {
    "np": np, "torch": torch, "near": near, "Rows": Rows, "Sums": Sums, "basis": basis, "figures": figures,
    "status_of": status_of, "latent_stats": latent_stats, "histograms": histograms, "bin_edges": bin_edges,
    "class_name": class_name, "baseline": baseline, "STATUS": ("dead", "rare", "alive", "dense"),
    "percentile": percentile, "l0_centiles": l0_centiles, "every": every, "splitmix": splitmix, "MATCHED": MATCHED,
    "recognised": recognised, "features_per_dimension": features_per_dimension,
    **{name: each for name, each in vars(worked).items() if not name.startswith("_")},
}  # fmt: skip


def test_every_block_of_the_document_is_an_example_that_asserts_something() -> None:
    assert DOCUMENT.count("```python") == len(EXAMPLES) > 25
    assert all("assert" in code for _, code in EXAMPLES)


@pytest.mark.parametrize("n", range(len(EXAMPLES)), ids=[name for name, _ in EXAMPLES])
def test_an_example_gives_what_the_document_says(n: int) -> None:
    """With those before it, whose names it may use."""
    known: dict[str, Any] = dict(KNOWN)
    for name, code in EXAMPLES[: n + 1]:
        exec(compile(code, f"docs/statistics.md, {name}", "exec"), known)
