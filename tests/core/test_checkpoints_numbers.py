"""Every checkpoint that a library wrote gives that library's own activations and reconstructions, or is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae_backend.core.checkpoints import CheckpointError, load
from sae_backend.core.encode import BlockEncoder
from sae_backend.core.sae import SparseAutoencoder
from tests import formats
from tests.core.test_checkpoints import assert_equals


@pytest.mark.parametrize("name", formats.SUPPORTED)
def test_a_checkpoint_computes_what_its_library_computes(name: str) -> None:
    sae, wanted = load(formats.FIXTURES / name, **formats.ANSWERS.get(name, {})), formats.expected(name)
    assert_equals(sae, wanted, 5e-3 if name in formats.HALF else 1e-6)
    assert bool(wanted["acts"].any()) and all(tensor.dtype == torch.float32 for tensor in sae.tensors().values())
    assert_fused(sae, wanted["x"])


def assert_fused(sae: SparseAutoencoder, x: Tensor) -> None:
    """Compare the encoder of the run's pipeline with the SAE's own."""
    found = BlockEncoder(sae)(x)
    dense = x.new_zeros(len(x), sae.cfg.d_sae)
    dense[found.rows(), found.latent.long()] = found.act
    torch.testing.assert_close(dense, sae.encode_dense(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", formats.REFUSED)
def test_what_cannot_have_pages_is_refused_with_a_sentence(name: str) -> None:
    with pytest.raises(CheckpointError) as refused:
        load(formats.FIXTURES / name)
    assert formats.REFUSED[name] in str(refused.value)


def test_every_refused_checkpoint_is_there() -> None:
    assert formats.checkpoints() >= formats.REFUSED.keys()


def test_every_checkpoint_is_described_in_the_documentation() -> None:
    text = (formats.FIXTURES.parents[1] / "docs/formats.md").read_text()
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| ")]
    for name in formats.checkpoints():
        folder, last = name.split("/")
        assert any(f"`{folder}/" in row and (f"/{last}`" in row or f"`{last}`" in row) for row in rows), name
