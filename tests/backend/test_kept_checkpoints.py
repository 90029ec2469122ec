"""What an import found in the names of folders, which the store does not keep, its SAE has when it is loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_backend import jobs, kept
from sae_backend.models import LanguageModel, Sae
from tests.backend import demo

pytestmark = pytest.mark.django_db(transaction=True)


def weights() -> dict[str, torch.Tensor]:
    return load_file(demo.SAE / "sae_weights.safetensors")


def qwen_scope(folder: Path) -> Path:
    """k and the hook point are in the names of repository and file alone."""
    found = weights()
    source = folder / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_16"
    source.mkdir()
    matrices = {name: found[name].T.contiguous() for name in ("W_enc", "W_dec")}
    torch.save({name: found[name] for name in ("b_enc", "b_dec")} | matrices, source / "layer2.sae.pt")
    return source


def sparsify(folder: Path) -> Path:
    """Both hook points are in the folder's name alone."""
    found = weights()
    source = folder / "run/layers.2.mlp"
    source.mkdir(parents=True)
    linear = {"encoder.weight": found["W_enc"].T.contiguous(), "encoder.bias": found["b_enc"]}
    save_file(linear | {"W_dec": found["W_dec"], "b_dec": found["b_dec"]}, source / "sae.safetensors")
    (source / "cfg.json").write_text(json.dumps({"k": 16, "d_in": 256, "transcode": True}))
    return source


@pytest.mark.parametrize("written", [qwen_scope, sparsify])
def test_an_sae_is_loaded_from_the_store_as_it_was_imported(
    lm: LanguageModel, tmp_path: Path, written: Callable[[Path], Path]
) -> None:
    row = demo.an_import(lm, source=written(tmp_path))
    jobs.import_sae(row.pk)
    row.refresh_from_db()
    assert row.error == ""
    sae = Sae.objects.get()
    kept.sae.cache_clear()
    loaded = kept.sae(sae.pk)
    assert loaded.identity() == sae.sha256
    assert (loaded.cfg.hook_name, loaded.cfg.hook_name_out or "") == (sae.hook_name, sae.hook_name_out)
    assert loaded.cfg.k == 16
    assert sae.hook_name == ("blocks.2.mlp.hook_in" if written is sparsify else "blocks.2.hook_resid_post")
