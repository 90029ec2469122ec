"""Every kind of hook point of many architectures: what is read and replaced is what TransformerLens reads and replaces.

First, middle and last of three blocks; models whose hooks differ in meaning (attention and MLP side by side, norms
behind them, residual streams added inside modules) against the bridge's own tensors and interventions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from sae_backend.core import language_model
from sae_backend.core.config import RunConfig
from sae_backend.core.language_model import LM, LanguageModelError
from tests.core import brute, small
from tests.core.outcome import Cut, run
from tests.core.small import BLOCKS, D_MODEL, small_sae

DEMO = Path(__file__).parents[2] / "demo" / "model"
THREE = {**BLOCKS, "num_hidden_layers": 3}
GROUPED = {**THREE, "num_key_value_heads": 1}
LOCAL = {**GROUPED, "head_dim": 16, "sliding_window": 8}
OPT = {"num_hidden_layers": 3, "hidden_size": D_MODEL, "ffn_dim": 48, "num_attention_heads": 2}
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": (GPT2Config, {"n_layer": 3, "n_embd": D_MODEL, "n_head": 2}),
    "gpt_neox": (GPTNeoXConfig, THREE),
    "gpt_neox, one after the other": (GPTNeoXConfig, {**THREE, "use_parallel_residual": False}),
    "llama": (LlamaConfig, GROUPED),
    "mistral": (MistralConfig, {**GROUPED, "sliding_window": 8}),
    "mixtral": (MixtralConfig, {**GROUPED, "num_local_experts": 2}),
    "qwen2": (Qwen2Config, GROUPED),
    "gemma2": (Gemma2Config, LOCAL),
    "gemma3": (Gemma3TextConfig, LOCAL),
    "olmo2": (Olmo2Config, GROUPED),
    "phi": (PhiConfig, THREE),
    "opt": (OPTConfig, {**OPT, "word_embed_proj_dim": D_MODEL}),
    "bloom": (BloomConfig, {"n_layer": 3, "hidden_size": D_MODEL, "n_head": 2}),
}
KINDS = [
    "hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z",
    "mlp.hook_post",
]  # fmt: skip
ABSENT = {("gpt_neox", "hook_resid_mid"), ("phi", "hook_resid_mid")}  # attention and MLP read the same stream
BRIDGED = {("mixtral", "mlp.hook_post")}  # several experts write it
NORMS = ["ln1.hook_normalized", "ln2.hook_normalized"]  # before gain and bias; read only
ONE_NORM = {"phi", "olmo2"}  # or none before attention and MLP
PAIRS = [(name, kind) for name in MODELS for kind in KINDS if (name, kind) not in ABSENT]
READ = PAIRS + [(name, kind) for name in MODELS for kind in NORMS if name not in ONE_NORM]
TOKENS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LM]:
    @lru_cache
    def load(name: str, dtype: torch.dtype = torch.float32) -> LM:
        folder = tmp_path_factory.mktemp("lm")
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(small.CONFIGS, name, MODELS[name])
            small.save_lm(folder, name)
        return language_model.load(str(folder), dtype)

    return load


@pytest.fixture(scope="module")
def caches(lms: Callable[..., LM]) -> Callable[..., Any]:
    return lru_cache(lambda *which: lms(*which).bridge.run_with_cache(TOKENS)[1])


def relative(ours: Tensor, expected: Tensor) -> float:
    """Largest error of a token's vector, in units of that vector."""
    return float(((ours - expected).float().norm(dim=-1) / expected.float().norm(dim=-1).clamp_min(1e-3)).max())


@pytest.mark.parametrize(("name", "kind"), READ)
def test_capture_is_the_bridges_own_tensor_by_the_plain_forward(
    lms: Callable[..., LM], caches: Callable[..., Any], name: str, kind: str
) -> None:
    for layer in range(3):
        hook_name = f"blocks.{layer}.{kind}"
        expected = caches(name)[hook_name].reshape(*TOKENS.shape, -1)
        assert relative(lms(name).capture(TOKENS, hook_name), expected) < 1e-5
        assert (lms(name)._site(hook_name) is None) == ((name, kind) in BRIDGED)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_capture_in_bfloat16_differs_by_its_rounding_only(
    lms: Callable[..., LM], caches: Callable[..., Any], name: str
) -> None:
    for kind in KINDS + NORMS:
        for layer in range(3):
            hook_name = f"blocks.{layer}.{kind}"
            ours = lms(name, torch.bfloat16).capture(TOKENS, hook_name)
            assert ours.dtype == (torch.float32 if kind in NORMS else torch.bfloat16)
            expected = (caches(name, torch.bfloat16), caches(name))
            errors = [relative(ours, cache[hook_name].reshape(ours.shape)) for cache in expected]
            assert max(errors) < 0.15, hook_name
            assert lms(name, torch.bfloat16)._site(hook_name) is not None


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_read_and_replaced_as_the_bridge_has_them(
    lms: Callable[..., LM], caches: Callable[..., Any], name: str
) -> None:
    lm, cache = lms(name), caches(name)
    assert relative(lm.capture(TOKENS, "hook_embed"), cache["hook_embed"]) < 1e-5
    assert (lm._site("hook_embed") is None) == (name == "bloom")  # whose embeddings have a norm
    if name.startswith("gemma"):  # which multiplies them with the root of its width, and adds no positions
        assert relative(lm.capture(TOKENS, "hook_embed"), cache["blocks.0.hook_resid_pre"]) < 1e-5
    new = torch.randn(*TOKENS.shape, D_MODEL, generator=torch.Generator().manual_seed(0))
    expected = with_bridge(lm, "hook_embed", TOKENS, lambda hidden: new.to(hidden.dtype))
    torch.testing.assert_close(lm.splice(TOKENS, "hook_embed", lambda _: new), expected, rtol=1e-4, atol=1e-4)
    assert relative(expected, lm.logits(TOKENS)) > 1e-2


def with_bridge(lm: LM, hook_name: str, tokens: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits by the bridge's own hooks. Where the residual stream splits, both who read its middle see the change."""
    change: list[Tensor] = []

    def swap(hidden: Tensor, hook: Any) -> Tensor:
        new = replace(hidden.reshape(*tokens.shape, -1)).reshape(hidden.shape)
        change.append(new - hidden)
        return new

    hooks = [(hook_name, swap)]
    if hook_name.endswith("hook_resid_mid"):
        after = hook_name.replace("hook_resid_mid", "hook_resid_post")
        hooks.append((after, lambda hidden, hook: hidden + change[0].reshape(hidden.shape)))
    with torch.no_grad():
        return lm.bridge.run_with_hooks(tokens, fwd_hooks=hooks)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_replacing_by_the_same_changes_nothing_and_by_zeros_is_the_bridges_own_ablation(
    lms: Callable[..., LM], name: str, kind: str
) -> None:
    lm, clean = lms(name), lms(name).logits(TOKENS)
    for layer in (0, 2):
        hook_name = f"blocks.{layer}.{kind}"
        assert relative(lm.splice(TOKENS, hook_name, lambda hidden: hidden), clean) < 1e-5
        assert relative(lm.resume(TOKENS, hook_name, lm.capture(TOKENS, hook_name)), clean) < 1e-5
        ablated = lm.splice(TOKENS, hook_name, torch.zeros_like)
        torch.testing.assert_close(
            ablated, with_bridge(lm, hook_name, TOKENS, torch.zeros_like), rtol=1e-4, atol=1e-4
        )
        assert relative(ablated, clean) > 1e-2


@pytest.mark.parametrize("name", sorted({name for name, _ in ABSENT}))
def test_a_middle_of_the_residual_stream_that_is_not_there_is_refused(lms: Callable[..., LM], name: str) -> None:
    with pytest.raises(LanguageModelError, match="has no hook point"):
        lms(name).capture(TOKENS, "blocks.1.hook_resid_mid")


@pytest.fixture(scope="module")
def demo() -> LM:
    return language_model.load(str(DEMO))


@pytest.mark.parametrize(("kind", "layer"), list(zip(KINDS, (0, 2, 4, 1, 3, 4, 0), strict=True)))
def test_a_whole_run_reads_and_replaces_the_demo_models_hook_point(
    demo: LM, tmp_path: Path, kind: str, layer: int
) -> None:
    hook_name, tokens = f"blocks.{layer}.{kind}", np.random.default_rng(0).integers(1, 4096, (4, 16)).astype(np.uint32)
    tokens[:, 0] = 0
    sae = small_sae("topk", 64, d_in=demo.width(hook_name), hook_name=hook_name)
    ours = run(sae, demo, tokens, {0}, RunConfig(fidelity_every=2), tmp_path, Cut(batch=1, contexts=3, latents=50))
    ids = torch.from_numpy(tokens.astype(np.int64))
    hidden = demo.bridge.run_with_cache(ids)[1][hook_name].flatten(2)
    x = hidden.detach()[:, 1:].reshape(4 * 15, -1).numpy()
    close = np.isclose(ours.acts[:, 1:].reshape(60, 64), brute.canonical(sae, x), rtol=1e-3, atol=1e-3)
    assert (close | brute.doubtful(sae, x)).all()
    assert not ours.acts[:, 0].any()
    recon = brute.reconstruction(sae, x)
    sampled = x.reshape(4, 15, -1)[::2].reshape(30, -1).astype(np.float64)
    errors = brute.fidelity(sampled, recon.reshape(4, 15, -1)[::2].reshape(30, -1))
    assert {name: ours.figures[name] for name in errors} == pytest.approx(errors, rel=1e-3)
    assert ours.figures["ce"]["tokens"] == 4 * 14
    for name, new in {"clean": x, "spliced": recon, "zero": np.zeros_like(x)}.items():
        there = hidden.detach().clone()
        there[:, 1:] = torch.from_numpy(new.astype(np.float32)).reshape(4, 15, -1)
        logits = with_bridge(demo, hook_name, ids, lambda _, there=there: there)
        nats = cross_entropy(logits[:, 1:-1].flatten(0, 1), ids[:, 2:].flatten())
        assert ours.figures["ce"][name] == pytest.approx(float(nats), rel=1e-4), name
