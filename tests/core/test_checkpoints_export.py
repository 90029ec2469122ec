"""What is exported is read back as the same SAE, or a sentence says why it cannot be written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae_backend.core.checkpoints import CheckpointError, detect, export, load
from sae_backend.core.sae import SparseAutoencoder
from tests.core.small import D_MODEL, small_sae
from tests.core.test_checkpoints import READ as SAELENS
from tests.core.test_checkpoints_formats import READ as OTHERS
from tests.formats import FIXTURES

CANNOT: dict[tuple[str, str], str] = {
    ("lm_saes/topk", "saelens"): "rank latents by pre_acts times decoder norm",
    ("lm_saes/topk_glu", "saelens"): "gated linear encoder can be written in neither",
    ("lm_saes/transcoder_topk", "saelens"): "rank latents by",
    ("sparsify/groupmax", "saelens"): "no GroupMax; export it as sparsify",
    ("sparsify/skip_transcoder", "saelens"): "no topk transcoder",
}


def hidden(d_in: int, n: int = 50) -> torch.Tensor:
    return 3 * torch.randn(n, d_in, generator=torch.Generator().manual_seed(7))


def assert_same(ours: SparseAutoencoder, back: SparseAutoencoder) -> None:
    x = hidden(ours.cfg.d_in)
    torch.testing.assert_close(back.encode_dense(x), ours.encode_dense(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(back.decode(back.encode(x)), ours.decode(ours.encode(x)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*SAELENS, *OTHERS])
def test_a_saelens_folder_gives_the_sae_back(tmp_path: Path, name: str) -> None:
    sae = load(FIXTURES / name)
    if (name, "saelens") in CANNOT:
        with pytest.raises(CheckpointError, match=CANNOT[name, "saelens"]):
            export(sae, tmp_path)
        return
    export(sae, tmp_path)
    assert detect(tmp_path).format == "saelens"
    back = load(tmp_path)
    assert back.identity() == sae.identity()
    assert (back.cfg.hook_name, back.cfg.model_name) == (sae.cfg.hook_name, sae.cfg.model_name)


@pytest.mark.parametrize("name", [*SAELENS, *OTHERS])
def test_a_sparsify_folder_gives_the_sae_back(tmp_path: Path, name: str) -> None:
    sae = load(FIXTURES / name)
    plain = sae.cfg.architecture in ("topk", "groupmax") and sae.cfg.input_norm == "none"
    if not plain or sae.cfg.rank_by_decoder_norm or sae.cfg.d_in != sae.cfg.d_out:
        with pytest.raises(CheckpointError):
            export(sae, tmp_path, "sparsify")
        return
    export(sae, tmp_path, "sparsify")
    assert detect(tmp_path).format == "sparsify"
    back = load(tmp_path)
    assert_same(sae, back)
    assert back.identity() == sae.identity()


FOLDED: dict[str, Mapping[str, Any]] = {
    "other scales": {"input_scale": 0.5, "output_scale": 3.0},
    "other scales and a bias": {"input_scale": 0.5, "output_scale": 3.0, "subtract_b_dec": True},
    "one scale and a bias": {"input_scale": 0.7, "output_scale": 1 / 0.7, "subtract_b_dec": True},
    "no bias subtracted": {"subtract_b_dec": False},
    "a transcoder": {"hook_name_out": "blocks.0.hook_mlp_out", "input_scale": 2.0, "output_scale": 0.25},
}


@pytest.mark.parametrize("layout", ["saelens", "sparsify"])
@pytest.mark.parametrize("options", FOLDED.values(), ids=FOLDED)
def test_what_a_layout_has_no_name_for_is_in_the_weights(tmp_path: Path, options: dict[str, Any], layout: str) -> None:
    transcoder = layout == "saelens" and "hook_name_out" in options
    sae = small_sae("standard" if transcoder else "topk", **options)
    export(sae, tmp_path, layout)
    assert_same(sae, load(tmp_path))


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "batchtopk", "gated", "tanh_relu"])
@pytest.mark.parametrize("norm", ["none", "layer_norm", "constant_norm"])
def test_every_architecture_and_normalisation_keeps_its_identity_as_saelens(
    tmp_path: Path, architecture: str, norm: str
) -> None:
    sae = small_sae(architecture, input_norm=norm, input_scale=0.3, output_scale=1 / 0.3, subtract_b_dec=True)
    export(sae, tmp_path)
    assert load(tmp_path).identity() == sae.identity()


@pytest.mark.parametrize("d_out", [20, D_MODEL])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_a_skip_connection_keeps_its_identity_as_saelens(tmp_path: Path, architecture: str, d_out: int) -> None:
    plain = small_sae(architecture, hook_name_out="blocks.1.hook_mlp_out", d_out=d_out)
    sae = replace(plain, W_skip=torch.randn(D_MODEL, d_out, generator=torch.Generator().manual_seed(0)))
    export(sae, tmp_path)
    assert load(tmp_path).identity() == sae.identity()
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"].endswith("skip_transcoder")


def test_the_tensors_are_as_the_libraries_orient_them(tmp_path: Path) -> None:
    sae = small_sae(d_sae=70)
    export(sae, tmp_path / "a")
    export(sae, tmp_path / "b", "sparsify")
    ours = {name: tuple(t.shape) for name, t in load_file(tmp_path / "a/sae_weights.safetensors").items()}
    assert ours == {"W_enc": (32, 70), "b_enc": (70,), "W_dec": (70, 32), "b_dec": (32,)}
    ours = {name: tuple(t.shape) for name, t in load_file(tmp_path / "b/layers.0/sae.safetensors").items()}
    assert ours == {"encoder.weight": (70, 32), "encoder.bias": (70,), "W_dec": (70, 32), "b_dec": (32,)}


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    refused = {
        "There is no layout 'zip'": (small_sae(), "zip"),
        "only TopK and GroupMax": (small_sae("gated"), "sparsify"),
        "of inputs as they are": (small_sae(input_norm="layer_norm"), "sparsify"),
        "needs the hook point": (small_sae("standard", d_out=20), "saelens"),
        "that inputs are centred": (small_sae("standard", input_norm="centred"), "saelens"),
        "have no b_enc": (replace(small_sae("gated"), b_enc=torch.ones(70)), "saelens"),
    }
    for message, (sae, layout) in refused.items():
        with pytest.raises(CheckpointError, match=message):
            export(sae, tmp_path, layout)
    assert not list(tmp_path.iterdir())
