"""The files that every side of a comparison reads: language model, SAE, tokens, and some of our activations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import agreement
from bench.pipeline import checkpoint


class Inputs:
    """Files in a folder, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lm = _language_model(folder / "lm")
        self.sae: Callable[[int], Path] = cache(self._sae)
        self.reference: Callable[[Path, Path], Path] = cache(self._reference)

    def _sae(self, d_sae: int) -> Path:
        """The demo's or a random one; SAELens 6 reads as older what does not say that it is of that version."""
        path = checkpoint(self.folder, d_sae)
        if path.parent == self.folder:
            metadata = json.loads((path / "cfg.json").read_text())["metadata"]
            _amend(path / "cfg.json", metadata=metadata | {"sae_lens_version": "6.0.0"})
        return path

    def tokens(self, dataset: Any) -> Path:
        from sae_backend import store

        path = self.folder / f"tokens-{dataset.n_tokens}.npy"
        if not path.exists():
            np.save(path, store.read_contexts(dataset, 0, dataset.n_contexts))
        return path

    def _reference(self, sae: Path, tokens: Path) -> Path:
        """Our activations of the first contexts, in float32."""
        import torch

        from sae_backend.core import checkpoints, language_model

        lm = language_model.load(str(self.lm))
        loaded = checkpoints.load(sae)
        assert loaded.cfg.hook_name is not None
        hidden = lm.capture(torch.from_numpy(agreement.sample(tokens)), loaded.cfg.hook_name)
        path = self.folder / f"reference-{loaded.cfg.d_sae}.npz"
        agreement.save(path, loaded.encode(hidden).dense().numpy())
        return path


def _language_model(folder: Path) -> Path:
    """The demo's, with two entries that SAEDashboard's older TransformerLens and transformers look for."""
    from demo import ROOT

    shutil.copytree(ROOT / "model", folder)
    _amend(folder / "config.json", n_ctx=256)
    _amend(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def _amend(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries, indent=1))
