"""Selection of the k largest, against a stable sort, ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_backend.core import kernels
from sae_backend.core.activations import by_latent
from sae_backend.core.encode import RunningTopK
from tests.core import brute

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def select(pre_acts: torch.Tensor, k: int, widths: list[int]) -> np.ndarray:
    """Dense result of RunningTopK fed with blocks of these widths, cyclically."""
    top, column, turn = RunningTopK(len(pre_acts), k, pre_acts.dtype), 0, 0
    while column < pre_acts.shape[1]:
        block = pre_acts[:, column : column + widths[turn % len(widths)]]
        top.add(block.contiguous(), column)
        column, turn = column + block.shape[1], turn + 1
    found = top.chosen()
    dense = np.zeros(pre_acts.shape, np.float32)
    dense[found.rows().numpy(), found.latent.numpy()] = found.act.numpy()
    assert len(found.latent) == np.count_nonzero(dense), "a latent was chosen twice"
    return dense


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, int, list[int]]:
    n, d_sae = draw(st.integers(1, 5)), draw(st.integers(1, 400))
    k = draw(st.integers(1, d_sae))
    levels = draw(st.sampled_from([1, 2, 5, 30, 100]))  # few levels make many ties; all are exact in bfloat16
    lowest = draw(st.sampled_from([-levels, 0, 1]))
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = torch.from_numpy(g.integers(lowest, levels + 1, (n, d_sae)) / np.float32(8))
    widths = draw(st.lists(st.integers(1, d_sae), min_size=1, max_size=4))
    return values.to(DTYPES[draw(st.sampled_from(sorted(DTYPES)))]), k, widths


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_k_largest_are_those_of_a_stable_sort_for_any_blocks_and_ties(
    problem: tuple[torch.Tensor, int, list[int]],
) -> None:
    pre_acts, k, widths = problem
    assert np.array_equal(select(pre_acts, k, widths), brute.top_k(pre_acts.float().numpy(), k))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("k", [1, 32, 200])
def test_values_of_any_size_are_kept_as_they_are(dtype: torch.dtype, k: int) -> None:
    exponents = torch.randn(20, 3000, generator=torch.Generator().manual_seed(0)) * 3
    pre_acts = (exponents.sign() * exponents.abs().exp() - 1).to(dtype)
    assert np.array_equal(select(pre_acts, k, [2048]), brute.top_k(pre_acts.float().numpy(), k))


def test_ascending_rows_which_displace_every_candidate_are_selected_right() -> None:
    pre_acts = torch.arange(1.0, 5001.0).repeat(2, 1)
    assert np.array_equal(select(pre_acts, 7, [1000]), brute.top_k(pre_acts.numpy(), 7))


def test_negative_zero_and_negative_values_never_fire() -> None:
    assert not select(torch.tensor([[-0.0, -1.0, 0.0, -3.0]]), 4, [2]).any()


def test_transposing_keeps_the_order_of_tokens_within_each_latent() -> None:
    g = np.random.default_rng(0)
    dense = g.random((50, 13)).astype(np.float32) * (g.random((50, 13)) < 0.3)
    indptr, out_token, act = by_latent([brute.part(dense[:20]), brute.part(dense[20:], 20)], dense.shape[1])
    expected = brute.rows(dense)
    assert np.array_equal(indptr, expected.indptr)
    assert np.array_equal(out_token, expected.token)
    assert np.array_equal(act, expected.act)


def test_hashes_of_tokens_latents_and_seeds_do_not_collide() -> None:
    hashes = {int(kernels.splitmix(t, i, s)) for t in range(40) for i in range(40) for s in range(10)}
    assert len(hashes) == 40 * 40 * 10
