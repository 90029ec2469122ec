"""The ways to choose what fires, against each other and their definitions: blocks in cache, dense rows, a device's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sae_backend.core import encode
from sae_backend.core.activations import Part, by_latent
from sae_backend.core.encode import BlockEncoder, Firings, RunningThreshold, bounded_topk
from tests.core import brute
from tests.core.small import small_sae
from tests.core.test_encode import OPTIONS, dense, hidden
from tests.core.test_kernels import DTYPES, problems


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems())
def test_bounding_by_groups_selects_what_a_stable_sort_does(problem: tuple[torch.Tensor, int, list[int]]) -> None:
    pre_acts, k, _ = problem
    found = bounded_topk(pre_acts, k)
    assert np.array_equal(dense(found, pre_acts.shape[1]), brute.top_k(pre_acts.float().numpy(), k))


def test_bounding_looks_at_few_columns_of_wide_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pre_acts = torch.randn(30, 20_000, generator=torch.Generator().manual_seed(0))
    assert (pre_acts >= encode._kth_bound(pre_acts, 32)).sum(1).float().mean() < 64
    assert np.array_equal(dense(bounded_topk(pre_acts, 32), 20_000), brute.top_k(pre_acts.numpy(), 32))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("widths", [[1], [64, 7], [300]])
def test_what_exceeds_its_latents_threshold_fires(dtype: torch.dtype, widths: list[int]) -> None:
    g = torch.Generator().manual_seed(0)
    pre_acts = torch.randn(20, 300, generator=g).to(dtype)
    sae = small_sae("jumprelu", 300)
    assert sae.threshold is not None
    sae.threshold[:] = torch.rand(300, generator=g) * 1.5
    sae.threshold[:60] = pre_acts[0, :60].float()  # equal to a threshold is not above it
    sae.threshold[60:70] = -1.0  # and what is not positive never fires
    sae.threshold[70:80] = 0.0
    running, column, turn = RunningThreshold(20, encode._threshold_bits(sae, dtype), dtype), 0, 0
    while column < 300:
        block = pre_acts[:, column : column + widths[turn % len(widths)]].contiguous()
        running.add(block, column)
        column, turn = column + block.shape[1], turn + 1
    exact = pre_acts.float()
    expected = torch.where((exact > sae.threshold) & (exact > 0), exact, 0.0).numpy()
    assert np.array_equal(dense(running.chosen(), 300), expected)
    assert (expected > 0).any(0).sum() > 200


def test_more_firings_than_were_made_room_for_are_kept() -> None:
    sae = small_sae("standard", 400)
    running = RunningThreshold(3, encode._threshold_bits(sae, torch.float32), torch.float32)
    running.add(torch.ones(3, 400), 0)
    assert np.array_equal(dense(running.chosen(), 400), np.ones((3, 400), np.float32))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "batchtopk", "topk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_in_cache_and_dense_rows_choose_alike(
    monkeypatch: pytest.MonkeyPatch, architecture: str, options: dict[str, str], dtype: torch.dtype
) -> None:
    sae, x = small_sae(architecture, 5000, **options), hidden(100)
    blocks = dense(BlockEncoder(sae, dtype)(x), 5000)
    monkeypatch.setattr(encode, "_BITS", {})
    monkeypatch.setattr(encode, "_DENSE", {"cpu": 5000 * 64})
    rows = BlockEncoder(sae, dtype)
    assert not rows.in_cache
    assert np.array_equal(dense(rows(x), 5000), blocks)


def part(firings: Firings, norm: torch.Tensor, place: np.ndarray, how: Callable[..., None]) -> Part:
    made = Part.__new__(Part)
    how(made, firings, norm, place, np.arange(0, len(place), 3))
    return made


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_host_and_an_accelerator_keep_the_same_rows(options: dict[str, str]) -> None:
    sae, x = small_sae(d_sae=150, **options), hidden(100)
    norm = sae.decoder_norm.clone()
    norm[::7] = 0  # a latent without a direction writes nothing
    rows = []
    for how in (Part._on_host, Part._on_device):
        parts = [
            part(BlockEncoder(sae)(x[a : a + 40]), norm, np.arange(a, min(a + 40, 100), dtype=np.uint32) * 3, how)
            for a in (0, 40, 80)
        ]
        sampled = np.concatenate([p.sample_latent for p in parts])
        rows.append((*by_latent(parts, 150), np.concatenate([p.l0 for p in parts]), sampled))
    for ours, expected in zip(*rows, strict=True):
        assert np.array_equal(ours, expected)
    assert len(rows[0][1]) > 100 and len(rows[0][-1]) > 30
