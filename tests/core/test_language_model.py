"""Capturing, replacing and unembedding hidden states, against TransformerLens and the model's own logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_backend.core import language_model
from sae_backend.core.language_model import LM, LanguageModelError
from tests.core.small import CONFIGS, D_MODEL, small_lm

OF_BLOCKS = [site for site in language_model._SITES if site != "hook_embed"]  # of which test_hook_points.py has more
SITES = [*OF_BLOCKS, "attn.hook_q", "mlp.hook_pre", "ln1.hook_normalized"]
ABSENT = {("gpt_neox", "hook_resid_mid")}  # attention and MLP read the same stream there
TOKENS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LM]:
    return lru_cache(lambda name: small_lm(tmp_path_factory.mktemp(name), name))


@pytest.fixture(scope="module")
def caches(lms: Callable[[str], LM]) -> Callable[[str], Any]:
    return lru_cache(lambda name: lms(name).bridge.run_with_cache(TOKENS)[1])


def relative(ours: Tensor, expected: Tensor) -> float:
    """Largest error of a token's vector, in units of that vector."""
    with torch.no_grad():
        return float(((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def halved(hidden: Tensor) -> Tensor:
    return hidden * 0.5 + torch.linspace(-1, 1, hidden.shape[-1])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", CONFIGS)
def test_capture_is_transformer_lens_tensor(
    lms: Callable[[str], LM], caches: Callable[[str], Any], name: str, site: str, layer: int
) -> None:
    hook_name = f"blocks.{layer}.{site}"
    if (name, site) in ABSENT:
        with pytest.raises(LanguageModelError, match="has no hook point"):
            lms(name).capture(TOKENS, hook_name)
        return
    hidden, expected = lms(name).capture(TOKENS, hook_name), caches(name)[hook_name].flatten(2)
    assert hidden.shape == expected.shape
    assert relative(hidden, expected) < 1e-5
    assert lms(name).width(hook_name) == expected.shape[-1]


@pytest.mark.parametrize("site", [s for s in SITES if s not in ("hook_resid_mid", "ln1.hook_normalized")])
@pytest.mark.parametrize("name", CONFIGS)
def test_splicing_is_transformer_lens_intervention(lms: Callable[[str], LM], name: str, site: str) -> None:
    lm, hook_name = lms(name), f"blocks.0.{site}"
    spliced = lm.splice(TOKENS, hook_name, halved)

    def swap(hidden: Tensor, hook: Any) -> Tensor:
        return halved(hidden.flatten(2)).reshape(hidden.shape)

    expected = lm.bridge.run_with_hooks(TOKENS, fwd_hooks=[(hook_name, swap)])
    assert relative(spliced, expected) < 1e-5
    assert relative(spliced, lm.logits(TOKENS)) > 1e-2


@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_forward_is_what_captures_the_residual_stream(
    lms: Callable[[str], LM], monkeypatch: pytest.MonkeyPatch, name: str, site: str
) -> None:
    lm = lms(name)
    lm.capture(TOKENS, f"blocks.1.{site}")
    monkeypatch.setattr(lm, "_bridge_capture", None)
    lm.capture(TOKENS, f"blocks.1.{site}")


def middle_replaced(lm: LM, name: str, layer: int) -> Tensor:
    """Logits from `halved` of the middle of a block, by running the rest of the model by hand."""
    block = lm.hf.get_submodule({"gpt2": "transformer.h", "llama": "model.layers"}[name])[layer]
    norm = block.ln_2 if name == "gpt2" else block.post_attention_layernorm
    new = halved(lm.bridge.run_with_cache(TOKENS)[1][f"blocks.{layer}.hook_resid_mid"])
    after = new + block.mlp(norm(new))
    return lm.splice(TOKENS, f"blocks.{layer}.hook_resid_post", lambda _: after)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_splicing_the_middle_of_the_residual_stream_changes_all_that_follows(
    lms: Callable[[str], LM], name: str, layer: int
) -> None:
    spliced = lms(name).splice(TOKENS, f"blocks.{layer}.hook_resid_mid", halved)
    assert relative(spliced, middle_replaced(lms(name), name, layer)) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_splicing_in_what_was_there_changes_nothing(lms: Callable[[str], LM], name: str) -> None:
    for site in SITES:
        if (name, site) not in ABSENT:
            spliced = lms(name).splice(TOKENS, f"blocks.1.{site}", lambda hidden: hidden)
            assert relative(spliced, lms(name).logits(TOKENS)) < 1e-5


@pytest.mark.parametrize("first_token", [1.0, 1e5])
def test_where_the_plain_forward_gives_another_tensor_transformer_lens_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_token: float
) -> None:
    lm = small_lm(tmp_path)
    lm.hf.transformer.wpe.weight[0] *= first_token  # as large as attention sinks: they must not hide the others
    monkeypatch.setitem(language_model._SITES, "hook_resid_post", language_model._SITES["hook_resid_mid"])
    expected = lm.bridge.run_with_cache(TOKENS)[1]["blocks.0.hook_resid_post"]
    assert relative(lm.capture(TOKENS, "blocks.0.hook_resid_post"), expected) < 1e-4


def test_a_module_that_is_never_called_is_left_to_transformer_lens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = small_lm(tmp_path)
    expected = lm.bridge.run_with_cache(TOKENS)[1]["blocks.0.hook_resid_post"]
    lm.hf.transformer.h[0].unused = torch.nn.Identity()
    monkeypatch.setattr(lm, "_sites", lambda hook_name: [(lm.hf.transformer.h[0].unused, "out")])
    assert relative(lm.capture(TOKENS, "blocks.0.hook_resid_post"), expected) < 1e-5


@pytest.mark.parametrize("hook_name", ["blocks.2.hook_resid_post", "blocks.x.hook_z", "hook_pos_embed", ""])
def test_a_hook_point_outside_the_blocks_is_refused_with_an_example(
    lms: Callable[[str], LM], hook_name: str
) -> None:
    for use in (lambda: lms("gpt2").capture(TOKENS, hook_name), lambda: lms("gpt2").splice(TOKENS, hook_name, halved)):
        with pytest.raises(LanguageModelError, match=r"blocks\.0 … blocks\.1: for example blocks\.1\.hook_resid_post"):
            use()


def test_an_unknown_hook_point_of_a_block_is_refused(lms: Callable[[str], LM]) -> None:
    with pytest.raises(LanguageModelError, match=r"no hook point .*; there are blocks.0.hook_resid_pre, .*hook_post"):
        lms("gpt2").capture(TOKENS, "blocks.0.hook_nonsense")


def direct_effect(lm: LM, name: str) -> tuple[Tensor, Tensor]:
    """The final hidden state through the folded W_U over its own norm, and the model's logits; [token d_vocab]."""
    final = lm.capture(TOKENS, "blocks.1.hook_resid_post").flatten(0, 1).double()
    logits = lm.logits(TOKENS).flatten(0, 1).double()
    if name == "gemma2":  # its logits are softly capped at 30
        logits = 30 * torch.atanh(logits / 30)
    centred = final - final.mean(1, keepdim=True) if name in ("gpt2", "gpt_neox") else final
    eps = {"gpt2": 1e-5, "gpt_neox": 1e-5}.get(name, 1e-6)
    norm = (centred.square().mean(1, keepdim=True) + eps).sqrt()
    unembedding = lm.unembedding()
    assert unembedding is not None
    return final @ unembedding.weight.double() / norm, logits


@pytest.mark.parametrize("name", CONFIGS)
def test_the_folded_unembedding_gives_the_models_logits_but_for_one_constant_a_token_of_the_vocabulary(
    lms: Callable[[str], LM], name: str
) -> None:
    ours, logits = direct_effect(lms(name), name)
    constant = logits - ours  # the norm's bias through W_U: the same at every token of the text
    assert (constant - constant.mean(0)).abs().max() < 1e-4
    assert (constant.abs().max() < 1e-4) == (name in ("llama", "gemma2"))


def test_a_direction_along_the_removed_mean_has_no_effect(lms: Callable[[str], LM]) -> None:
    mean = torch.ones(D_MODEL)
    effect = {name: (mean @ lms(name).unembedding().weight).abs().max() for name in ("gpt2", "llama")}  # type: ignore[union-attr]
    assert effect["gpt2"] < 1e-4
    assert effect["llama"] > 0.1


def test_a_folder_without_a_language_model_is_refused_with_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match=r"must be a folder with config\.json"):
        language_model.load(str(tmp_path))


def test_identity_follows_weights_and_not_the_folders_name(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        small_lm(folder)
    first, second = (language_model.sha256(str(f)) for f in folders)
    assert first == second
    weights = folders[1] / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert language_model.sha256(str(folders[1])) != first
