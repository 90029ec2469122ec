"""A whole run on a small language model against dense brute force, and its indifference to how the work is cut."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from sae_backend.core import cofiring, fidelity
from sae_backend.core.config import SAMPLE_TOKENS, RunConfig
from sae_backend.core.contexts import tokenize, vocabulary
from sae_backend.core.decoder import Decoder
from sae_backend.core.language_model import LM
from sae_backend.core.results import LatentShard
from sae_backend.core.run import ContextPass, LatentPass, RunError
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.packing import TOP
from tests.core import brute
from tests.core.small import HOOK, SEPARATOR, small_lm, small_sae

CONTEXTS, CTX_LEN, D_SAE = 12, 32, 70
CFG = RunConfig(batch_contexts=CONTEXTS, top=6, fidelity_every=3, ce_contexts=4, sample_every=1)
SAES: dict[str, dict[str, Any]] = {
    "topk, layer norm": {"input_norm": "layer_norm", "subtract_b_dec": True},
    "topk, constant norm": {"input_norm": "constant_norm", "output_scale": 1.5},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "standard": {"architecture": "standard"},
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return small_lm(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def tokens(lm: LM) -> np.ndarray:
    """Contexts of random bytes with separators inside, and one context that is a copy of another."""
    g = np.random.default_rng(0)
    texts = (bytes(g.integers(97, 117, n).tolist()).decode() for n in g.integers(1, 40, 40))
    cut = tokenize(((str(i), t) for i, t in enumerate(texts)), lm.tokenizer, CTX_LEN)
    out = cut.tokens[:CONTEXTS].copy()
    out[7] = out[2]
    return out


def special_of(lm: LM) -> set[int]:
    _, special = vocabulary(lm.tokenizer, len(lm.tokenizer))
    return {i for i, s in enumerate(special) if s}


@dataclass
class Outcome:
    latents: list[LatentShard]
    sums: fidelity.Sums


def run(
    sae: SparseAutoencoder, lm: LM, tokens: np.ndarray, folder: Path, cfg: RunConfig = CFG,
    contexts: int = CONTEXTS, latents: int = D_SAE, order: int = 1,
) -> Outcome:  # fmt: skip
    """All shards of a run, through files; order -1 computes and hands them over last first."""
    context_pass = ContextPass(sae, lm, cfg, special_of(lm))
    paths = []
    for lo in range(0, len(tokens), contexts)[::order]:
        paths.append(folder / f"{lo}.safetensors")
        context_pass.shard(tokens[lo : lo + contexts], lo, len(tokens), lambda done: None).save(paths[-1])
    latent_pass = LatentPass(paths, Decoder(sae, lm.unembedding()), cfg)
    d_sae = sae.cfg.d_sae
    shards = [latent_pass.shard(lo, min(lo + latents, d_sae)) for lo in range(0, d_sae, latents)]
    return Outcome(shards, latent_pass.sums)


def hidden_of(lm: LM, tokens: np.ndarray) -> np.ndarray:
    """[CONTEXTS CTX_LEN d_in] from transformers alone: hidden_states[1] is the output of block 0."""
    with torch.no_grad():
        out = lm.hf(torch.from_numpy(tokens.astype(np.int64)), output_hidden_states=True)
    return out.hidden_states[1].numpy()


@pytest.mark.parametrize("count_special", [False, True])
@pytest.mark.parametrize("options", SAES.values(), ids=SAES)
def test_a_run_gives_what_dense_activations_give(
    lm: LM, tokens: np.ndarray, tmp_path: Path, options: dict[str, Any], count_special: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(cofiring, "PAIRS", 10**6)  # all sampled tokens are kept
    sae = small_sae(**options)
    cfg = replace(CFG, count_special=count_special)
    outcome = run(sae, lm, tokens, tmp_path, cfg)
    [ours] = outcome.latents
    counted = np.isin(tokens, list(special_of(lm)), invert=True) | count_special
    hidden = hidden_of(lm, tokens)
    acts = np.zeros((CONTEXTS, CTX_LEN, D_SAE))
    acts[counted] = brute.canonical(sae, hidden[counted])
    assert outcome.sums.tokens == counted.sum() < CONTEXTS * CTX_LEN + count_special
    for i in range(D_SAE):
        for name, expected in brute.stats(acts[counted][:, i]).items():
            assert np.allclose(getattr(ours.stats, name)[i], expected, 1e-3, 0, equal_nan=True), (i, name)
        top = ours.examples[i].interval == TOP
        chosen = list(zip(ours.examples[i].context[top].tolist(), ours.examples[i].peak[top].tolist(), strict=True))
        assert chosen == brute.top_contexts(acts[:, :, i], tokens, cfg.top, cfg.duplicate_reach)
        assert ours.histograms[i].counts.sum() == ours.stats.firings[i]
        for j, (c, a, b) in enumerate(zip(ours.examples[i].context, ours.examples[i].offsets[:-1],
                                          ours.examples[i].offsets[1:], strict=True)):  # fmt: skip
            row = np.zeros(CTX_LEN)
            row[ours.examples[i].position[a:b]] = ours.examples[i].act[a:b]
            assert np.allclose(row, acts[c, :, i], rtol=1e-4, atol=1e-4), (i, j)
    assert_near(sae, hidden, acts, counted, ours)
    assert fidelity.figures(outcome.sums)["l0"] == pytest.approx((acts[counted] > 0).sum(1).mean())
    assert fidelity.figures(outcome.sums)["l0"] == pytest.approx(ours.stats.density.sum())


def assert_near(
    sae: SparseAutoencoder, hidden: np.ndarray, acts: np.ndarray, counted: np.ndarray, ours: LatentShard
) -> None:
    """Margins and where dead latents came closest, on every fourth context; what fires together, on all."""
    assert ours.misses is not None and ours.cofiring is not None
    margins = np.full(acts.shape, -np.inf)
    margins[counted] = brute.margins(sae, hidden[counted])
    margins = margins[::4]
    assert np.allclose(ours.stats.margin, margins.max((0, 1)), rtol=1e-3, atol=1e-3)
    fires = acts[counted] > 0
    for i in range(D_SAE):
        best = np.sort(margins[:, :, i].max(1))[::-1] if not fires[:, i].any() else np.zeros(0)
        near = ours.misses[i]
        assert np.allclose(near.margin, best, rtol=1e-3, atol=1e-3)
        at = [margins[c // 4, p, i] for c, p in zip(near.context.tolist(), near.peak.tolist(), strict=True)]
        assert np.allclose(at, best, rtol=1e-3, atol=1e-3)
        with_it = fires & fires[:, [i]]
        both, either = with_it.sum(0), (fires | fires[:, [i]]).sum(0)
        together = ours.cofiring[i]
        assert (together.tokens, together.own) == (len(fires), both[i])
        assert together.both.tolist() == both[together.latent].tolist()
        indices = np.delete(both / np.maximum(either, 1), i)
        found = [together.jaccard(*pair) for pair in zip(together.both, together.firings, strict=True)]
        assert found == sorted(indices[indices > 0].tolist(), reverse=True)[:10]
        assert together.nearest.tolist() == both[ours.neighbours[i].nearest].tolist()


@pytest.mark.parametrize("options", SAES.values(), ids=SAES)
def test_reconstruction_errors_are_those_of_the_sampled_contexts(
    lm: LM, tokens: np.ndarray, tmp_path: Path, options: dict[str, Any]
) -> None:
    sae = small_sae(**options)
    figures = fidelity.figures(run(sae, lm, tokens, tmp_path).sums)
    sample = tokens[::3]
    x = hidden_of(lm, tokens)[::3][np.isin(sample, list(special_of(lm)), invert=True)].astype(np.float64)
    expected = brute.fidelity(x, brute.reconstruction(sae, x))
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert figures["fidelity_tokens"] == len(x)


def test_errors_are_of_a_bounded_number_of_tokens_however_long_the_text_is(lm: LM, tokens: np.ndarray) -> None:
    """Of a run of so many contexts that only every tenth of them is decoded, and every fortieth for basis kurtosis."""
    many = 10 * SAMPLE_TOKENS // tokens.shape[1]
    sums = ContextPass(small_sae(), lm, CFG, special_of(lm)).shard(tokens, 35, many, lambda done: None).sums
    counted = np.isin(tokens, list(special_of(lm)), invert=True).sum(1)
    assert (sums["decoded"], sums["basis_tokens"]) == (counted[5::10].sum(), counted[5::40].sum())


def cross_entropy_with(lm: LM, tokens: np.ndarray, counted: np.ndarray, replacement: np.ndarray | None) -> float:
    """Mean nats after counted tokens, with what block 0 writes there replaced, by a hook of torch's own."""

    def swap(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        assert replacement is not None
        hidden[torch.from_numpy(counted)] = torch.from_numpy(replacement.astype(np.float32))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = None if replacement is None else lm.hf.transformer.h[0].register_forward_hook(swap)
    ids = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        logits = lm.hf(ids).logits
    if handle is not None:
        handle.remove()
    mask = torch.from_numpy(counted[:, :-1])
    return float(cross_entropy(logits[:, :-1][mask].double(), ids[:, 1:][mask]))


@pytest.mark.parametrize("options", SAES.values(), ids=SAES)
def test_cross_entropies_are_transformers_own_with_counted_tokens_replaced(
    lm: LM, tokens: np.ndarray, tmp_path: Path, options: dict[str, Any]
) -> None:
    sae = small_sae(**options)
    ours = fidelity.figures(run(sae, lm, tokens, tmp_path).sums)["ce"]
    sample = tokens[[0, 3, 6, 9]]
    counted = np.isin(sample, list(special_of(lm)), invert=True)
    x = hidden_of(lm, sample)[counted]
    replacements = {"clean": None, "spliced": brute.reconstruction(sae, x), "zero": np.zeros_like(x)}
    expected = {name: cross_entropy_with(lm, sample, counted, r) for name, r in replacements.items()}
    assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    recovered = (expected["zero"] - expected["spliced"]) / (expected["zero"] - expected["clean"])
    assert ours["recovered"] == pytest.approx(recovered, rel=1e-2)
    assert ours["tokens"] == counted[:, :-1].sum()


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Equal to the last bit, field by field, NaN where NaN."""
    if is_dataclass(a):
        for f in fields(a):
            if f.name not in ("lo", "hi", "decoder", "neighbours", "logits"):  # weights: test_decoder
                assert_same(getattr(a, f.name), getattr(b, f.name), f"{path}.{f.name}")
    elif isinstance(a, list) and a and is_dataclass(a[0]):
        assert len(a) == len(b)
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), path
    else:
        assert a == b, path


def together(shards: list[LatentShard]) -> dict[str, Any]:
    """Shards of latents end to end, without what the weights alone say."""
    stats = [np.concatenate(x) for x in zip(*(astuple(s.stats) for s in shards), strict=True)]
    names = ("examples", "histograms", "strongest", "misses", "cofiring")
    lists = {name: [x for s in shards for x in getattr(s, name)] for name in names}
    return {"stats": stats, **lists, "sparks": np.concatenate([s.sparks for s in shards])}


@pytest.mark.parametrize("order", [1, -1], ids=["first shard first", "last shard first"])
@pytest.mark.parametrize(
    ("batch", "contexts", "latents"), [(1, 1, 7), (3, 2, 64), (8, 5, D_SAE), (1, CONTEXTS, D_SAE), (3, 5, 7)]
)
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "groupmax"])
def test_results_are_the_same_bits_for_any_batch_shards_and_order(
    lm: LM, tokens: np.ndarray, tmp_path: Path, architecture: str, batch: int, contexts: int, latents: int, order: int
) -> None:
    sae = small_sae(architecture, input_norm="layer_norm")
    whole = run(sae, lm, tokens, tmp_path / "whole")
    cfg = replace(CFG, batch_contexts=batch)
    cut = run(sae, lm, tokens, tmp_path / "cut", cfg, contexts, latents, order)
    ours, expected = together(cut.latents), together(whole.latents)
    for name in expected:
        for i, (x, y) in enumerate(zip(ours[name], expected[name], strict=True)):
            assert_same(x, y, f"{name}[{i}]")
    a, b = fidelity.figures(cut.sums), fidelity.figures(whole.sums)
    assert a["l0_histogram"] == b["l0_histogram"]
    for name in ("mse", "fvu", "normalised_mse"):
        assert a[name] == pytest.approx(b[name], rel=1e-6), name  # the decoder's float32 sums follow the batch
    assert a["ce"] == pytest.approx(b["ce"], rel=1e-6)


def test_special_tokens_and_nothing_else_are_left_out(lm: LM, tokens: np.ndarray, tmp_path: Path) -> None:
    separator = lm.tokenizer.convert_tokens_to_ids(SEPARATOR)
    assert (tokens[:, 1:] == separator).any(), "the text has separators inside contexts"
    assert run(small_sae(), lm, tokens, tmp_path).sums.tokens == (tokens != separator).sum()


def test_contexts_of_special_tokens_alone_are_counted_as_nothing(lm: LM, tokens: np.ndarray, tmp_path: Path) -> None:
    blank = tokens.copy()
    blank[::2] = lm.tokenizer.eos_token_id
    outcome = run(small_sae(), lm, blank, tmp_path, replace(CFG, batch_contexts=1), contexts=1)
    assert outcome.sums.tokens == (blank != lm.tokenizer.eos_token_id).sum()


def test_a_latent_without_a_direction_never_fires(lm: LM, tokens: np.ndarray, tmp_path: Path) -> None:
    sae = small_sae("standard")
    fires = int(run(sae, lm, tokens, tmp_path).latents[0].stats.firings.argmax())
    sae = small_sae("standard")
    sae.W_dec[fires] = 0
    outcome = run(sae, lm, tokens, tmp_path)
    assert outcome.latents[0].stats.firings[fires] == 0
    assert fidelity.figures(outcome.sums)["l0"] == pytest.approx(outcome.latents[0].stats.density.sum())


def test_a_transcoder_is_measured_against_what_it_writes(lm: LM, tokens: np.ndarray, tmp_path: Path) -> None:
    names = {"hook_name": HOOK.replace("resid_post", "mlp_out"), "hook_name_out": HOOK}
    sae = small_sae("standard", **names)
    figures = fidelity.figures(run(sae, lm, tokens, tmp_path).sums)
    kept = np.isin(tokens[::3], list(special_of(lm)), invert=True)
    read = lm.capture(torch.from_numpy(tokens[::3].astype(np.int64)), names["hook_name"]).numpy()[kept]
    written = hidden_of(lm, tokens)[::3][kept].astype(np.float64)
    expected = brute.fidelity(written, brute.reconstruction(sae, read))
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_progress_is_reported_in_tokens(lm: LM, tokens: np.ndarray) -> None:
    done: list[int] = []
    cfg = replace(CFG, batch_contexts=5)
    ContextPass(small_sae(), lm, cfg, special_of(lm)).shard(tokens, 0, CONTEXTS, done.append)
    assert done == sorted(set(done))
    assert all(n % CTX_LEN == 0 for n in done)
    assert done[-1] == CONTEXTS * CTX_LEN


def test_an_sae_that_fires_everywhere_is_refused(lm: LM, tokens: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"of 70 latents fire on a token on average; more than 20 means that .* wrongly"):
        run(small_sae("standard"), lm, tokens, tmp_path, replace(CFG, max_l0=20))
    run(small_sae(k=5), lm, tokens, tmp_path, replace(CFG, max_l0=5))
