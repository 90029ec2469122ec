"""Transcoders read one hook point and write another: their figures against brute force on the bridge's own tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sae_backend.core.config import RunConfig
from sae_backend.core.language_model import LM
from sae_backend.core.sae import SparseAutoencoder
from tests.core import brute
from tests.core.outcome import Cut, Outcome, run
from tests.core.small import small_lm, small_sae

SPECIAL = 256
PATHS = {
    "the MLP, from its normalised input": ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"),
    "the MLP's second half, other width": ("blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out"),
    "a block": ("blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"),
    "two blocks": ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_mid"),
    "attention of an earlier block": ("blocks.0.hook_resid_mid", "blocks.0.hook_attn_out"),
}


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LM]:
    return lru_cache(lambda name: small_lm(tmp_path_factory.mktemp(name), name))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    g = np.random.default_rng(0)
    drawn = g.integers(0, 256, (7, 12))
    return np.where(g.random((7, 12)) < 0.2, SPECIAL, drawn).astype(np.uint32)


def transcoder(lm: LM, reads: str, writes: str, architecture: str, skip: bool) -> SparseAutoencoder:
    widths = {"d_in": lm.width(reads), "d_out": lm.width(writes)}
    sae = small_sae(architecture, 70, hook_name=reads, hook_name_out=writes, **widths)
    W_skip = torch.randn(widths["d_in"], widths["d_out"], generator=torch.Generator().manual_seed(5)) / 3
    return replace(sae, W_skip=W_skip) if skip else sae


@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize(("name", "architecture"), [("gpt2", "topk"), ("gemma2", "standard"), ("llama", "jumprelu")])
def test_a_transcoder_is_measured_by_what_it_writes(
    lms: Callable[[str], LM], tokens: np.ndarray, tmp_path: Path, name: str, architecture: str, path: tuple[str, str],
    skip: bool,
) -> None:  # fmt: skip
    lm, (reads, writes) = lms(name), path
    sae = transcoder(lm, reads, writes, architecture, skip)
    ours = run(sae, lm, tokens, {SPECIAL}, RunConfig(fidelity_every=2, ce_contexts=3), tmp_path, Cut(2, 3, 40))
    ids, counted = torch.from_numpy(tokens.astype(np.int64)), tokens != SPECIAL
    cache = lm.bridge.run_with_cache(ids)[1]
    x, y = (cache[hook_name].detach().flatten(2).numpy() for hook_name in path)
    written = np.zeros((*tokens.shape, sae.cfg.d_out))
    written[counted] = brute.reconstruction(sae, x[counted])
    assert_fires(ours, sae, x, counted)
    errors = brute.fidelity(y[::2][counted[::2]].astype(np.float64), written[::2][counted[::2]])
    assert {name: ours.figures[name] for name in errors} == pytest.approx(errors, rel=1e-3)
    sample = brute.evenly(len(tokens), 3)
    for which, new in {"clean": y, "spliced": written, "zero": np.zeros_like(y)}.items():
        there = torch.from_numpy(np.where(counted[..., None], new, y).astype(np.float32))
        nats = cross_entropies(lm, writes, ids, there)[sample][counted[sample][:, :-1]].mean()
        assert ours.figures["ce"][which] == pytest.approx(float(nats), rel=1e-4), which


def assert_fires(ours: Outcome, sae: SparseAutoencoder, x: np.ndarray, counted: np.ndarray) -> None:
    assert not ours.acts[~counted].any()
    close = np.isclose(ours.acts[counted], brute.canonical(sae, x[counted]), rtol=1e-3, atol=1e-3)
    assert (close | brute.doubtful(sae, x[counted])).all()
    assert (ours.acts > 0).any()


def cross_entropies(lm: LM, hook_name: str, ids: Tensor, there: Tensor) -> np.ndarray:
    """Nats [context pos - 1] with `there` at the hook point, by the bridge's own hooks."""
    old: list[Tensor] = []

    def swap(hidden: Tensor, hook: object) -> Tensor:
        old.append(hidden)
        return there

    hooks = [(hook_name, swap)]
    if hook_name.endswith("hook_resid_mid"):  # the bridge's hook leaves out what goes past the MLP
        after = hook_name.replace("hook_resid_mid", "hook_resid_post")
        hooks.append((after, lambda hidden, hook: hidden + there - old[0]))
    with torch.no_grad():
        logits = lm.bridge.run_with_hooks(ids, fwd_hooks=hooks)
    return cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").numpy()
