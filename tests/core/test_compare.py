"""Two SAEs beside each other: best cosines against brute force, what was planted, and both on the same tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_backend.core import compare, matching
from sae_backend.core.compare import Half, Pair, counterparts
from sae_backend.core.language_model import LM
from sae_backend.core.matching import DEAD, MATCHED, MERGED, NOVEL, RELATED, SPLIT, Side, classify
from sae_backend.core.neighbours import Directions
from sae_backend.core.sae import SparseAutoencoder
from tests.core.small import small_lm, small_sae

D = 48
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lengths(n: int) -> Tensor:
    return 0.1 + 5 * torch.rand(n, 1, generator=torch.Generator().manual_seed(3))


def rotation(seed: int = 9) -> Tensor:
    return torch.linalg.qr(randn(D, D, seed=seed)).Q


def sides(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32, dead_b: tuple[int, ...] = ()) -> tuple[Side, Side]:
    live_a, live_b = np.ones(len(a), bool), np.ones(len(b), bool)
    live_b[list(dead_b)] = False
    of_a, of_b = Directions(a, dtype), Directions(b, dtype)
    found = counterparts(of_a, of_b, live_b), counterparts(of_b, of_a, live_a)
    return tuple(  # type: ignore[return-value]
        Side(*f, live, np.zeros(len(live), np.uint32), np.zeros(len(live), np.uint32))
        for f, live in zip(found, (live_a, live_b), strict=True)
    )


def brute(a: Tensor, b: Tensor, live: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    unit = [(w / w.norm(dim=1, keepdim=True).clamp_min(1e-30)).double().numpy() for w in (a, b)]
    cos = (unit[0] @ unit[1].T).astype(np.float32)
    cos[:, ~live | (b.norm(dim=1).numpy() == 0)] = -np.inf
    ids = np.argsort(-cos, axis=1, kind="stable")[:, : matching.N_BEST]
    return ids, np.take_along_axis(cos, ids, 1)


@BOTH
def test_counterparts_are_those_of_brute_force(dtype: torch.dtype) -> None:
    a, b = randn(700, D), randn(5000, D, seed=1) * lengths(5000)
    b[:400] = b[400:800] * (1 + 1e-3 * randn(400, D, seed=2))  # nearly the same, for the rounding to mix up
    b[4000:4050] = a[7]  # more alike than candidates are kept
    live = np.ones(5000, bool)
    live[100:120] = False
    ids, cos = counterparts(Directions(a, dtype), Directions(b, dtype), live)
    expected, values = brute(a, b, live)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(cos, values, rtol=0, atol=2e-7)
    assert ids[7].tolist() == [4000, 4001, 4002]


def test_a_negative_cosine_is_the_best_where_there_is_no_other() -> None:
    a, b = randn(5, D), torch.zeros(4, D)
    b[1], b[3] = -a[0], -a[0] + 0.1 * a[1]
    ids, cos = counterparts(Directions(a), Directions(b), np.ones(4, bool))
    assert ids[0].tolist()[:2] == [3, 1] and cos[0, 1] == pytest.approx(-1)
    assert np.isnan(cos[:, 2]).all()  # two of b have no direction


def test_of_cosines_near_zero_none_is_lost_to_rounding() -> None:
    a, tilt = randn(1, D), 3e-3 * randn(400, 1, seed=2)
    a /= a.norm()
    across = randn(400, D, seed=1)
    across -= (across @ a.T - tilt) * a
    for b in across.split(4):  # so few that some of the best are rounded below zero
        ids, _ = counterparts(Directions(a, torch.bfloat16), Directions(b, torch.bfloat16), np.ones(4, bool))
        np.testing.assert_array_equal(ids, brute(a, b, np.ones(4, bool))[0])


def test_latents_without_a_direction_have_no_counterpart_and_dead_ones_are_nobodys() -> None:
    a, b = randn(6, D), randn(6, D)
    b[2], a[4] = 0.0, 0.0
    one, other = sides(a, b, dead_b=(1,))
    assert one.counterpart[[0, 3, 5]].tolist() == [0, 3, 5] and one.counterpart[4] == -1
    assert 1 not in one.best[:, 0][~np.isnan(one.best_cos)] and other.counterpart[1] == 1
    codes_a, codes_b = classify(one, other)
    assert codes_b.tolist() == [MATCHED, DEAD, NOVEL, MATCHED, NOVEL, MATCHED]
    assert (codes_a[1], codes_a[2], codes_a[4]) == (NOVEL, NOVEL, NOVEL)


def test_an_sae_matches_itself_in_any_order_and_scale() -> None:
    a = randn(300, D)
    order = np.random.default_rng(0).permutation(300)
    one, other = sides(a, a[order] * lengths(300))
    assert (order[one.counterpart] == np.arange(300)).all()
    for codes in classify(one, other):
        assert (codes == MATCHED).all()


def test_a_rotated_sae_has_nothing_in_common() -> None:
    a = randn(60, D)
    for codes in classify(*sides(a, a @ rotation())):
        assert (codes == NOVEL).all()


def planted(k: int = 4, cos: float = 0.8) -> tuple[Tensor, Tensor]:
    """Orthogonal directions: 0 … 9 shared, 10 split into k at that cosine, 11 and 12 only in the smaller; the larger
    has three more of its own."""
    basis = rotation()
    small = basis[:13]
    children = cos * basis[10] + (1 - cos**2) ** 0.5 * basis[20 : 20 + k]
    return small, torch.cat([basis[:10].flip(0), children, basis[30:33]])


def test_what_was_planted_is_found() -> None:
    small, large = sides(*planted())
    codes_small, codes_large = classify(small, large)
    assert codes_small.tolist() == [MATCHED] * 10 + [SPLIT, NOVEL, NOVEL]
    assert codes_large.tolist() == [MATCHED] * 10 + [SPLIT] * 4 + [NOVEL] * 3
    assert small.counterpart[:10].tolist() == list(range(9, -1, -1))
    assert large.counterpart[10:14].tolist() == [10] * 4
    found = matching.groups(large, 13)
    assert np.flatnonzero(found.parent).tolist() == [10] and np.flatnonzero(found.child).tolist() == [10, 11, 12, 13]


def test_merged_is_split_the_other_way_round_and_thresholds_decide() -> None:
    small, large = sides(*planted())
    codes = classify(large, small)
    assert codes[1].tolist() == [MATCHED] * 10 + [MERGED, NOVEL, NOVEL]
    apart = classify(small, large, near=0.81)
    assert apart[0][10] == NOVEL and (apart[1][10:14] == NOVEL).all()
    assert classify(small, large, match=1.01)[0].tolist()[:10] == [RELATED] * 10


def test_a_parent_that_stays_is_matched_and_its_children_are_split() -> None:
    parent, child = planted(k=2)
    both = torch.cat([child, parent[10:11]])
    small, large = sides(parent, both)
    codes_small, codes_large = classify(small, large)
    assert codes_small[10] == MATCHED and codes_large[-1] == MATCHED
    assert codes_large[10:12].tolist() == [SPLIT, SPLIT]


# ---- on the same tokens ----


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return small_lm(tmp_path_factory.mktemp("lm"))


def pair(lm: LM, a: SparseAutoencoder, b: SparseAutoencoder) -> Pair:
    rows = [Directions(sae.W_dec) for sae in (a, b)]
    live = [np.ones(len(r.unit), bool) for r in rows]
    found = counterparts(rows[0], rows[1], live[1]), counterparts(rows[1], rows[0], live[0])
    return Pair(Half.of(a, *found[0]), Half.of(b, *found[1]), lm, torch.float32, {0})


def tokens(n: int = 40) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 200, (n, 16), np.uint32)


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_firing_together_and_stitching_are_those_of_dense_activations(lm: LM, kind: str) -> None:
    a, b = small_sae(kind, 60), small_sae(kind, 90, seed=1, input_norm="layer_norm")
    b.W_dec[:30] = a.W_dec[:30] * 2
    halves = pair(lm, a, b)
    one, other = halves.measure(tokens())
    kept = torch.from_numpy(tokens().astype(np.int64)) != 0
    x = lm.capture(torch.from_numpy(tokens().astype(np.int64)), a.cfg.hook_name)[kept].float()
    on_a, on_b = (sae.encode_dense(x).numpy() > 0 for sae in (a, b))
    np.testing.assert_array_equal(one.fires, on_a.sum(0))
    np.testing.assert_array_equal(one.both, (on_a & on_b[:, halves.a.counterpart]).sum(0))
    np.testing.assert_array_equal(other.both, (on_b & on_a[:, halves.b.counterpart]).sum(0))
    acts, cos = b.encode(x).dense(), counterparts(Directions(b.W_dec), Directions(a.W_dec), np.ones(60, bool))[1][:, 0]
    variance = (x - x.mean(0)).double().square().sum()
    for row in one.figures()["stitched"]:
        novel = torch.from_numpy(cos < (row["near"] or 2))
        theirs = b.decode(acts * novel, x) - b.decode(acts * 0, x)
        error = (x - a.decode(a.encode(x)) - theirs).double().square().sum()
        assert row["fvu"] == pytest.approx(float(error / variance), rel=1e-5)
        assert row["l0"] == pytest.approx(float((acts[:, novel] > 0).sum() / len(x)))


def test_adding_what_was_cut_out_of_an_sae_gives_it_back(lm: LM) -> None:
    whole = small_sae("standard", 60)
    part = small_sae("standard", 60)
    part.W_enc[:, 40:], part.b_enc[40:] = 0.0, -1.0  # these never fire
    live = np.arange(60) < 40
    rows = Directions(whole.W_dec), Directions(part.W_dec)
    found = counterparts(rows[0], rows[1], live), counterparts(rows[1], rows[0], np.ones(60, bool))
    halves = Pair(Half.of(whole, *found[0]), Half.of(part, *found[1]), lm, torch.float32, set())
    of_whole, of_part = halves.measure(tokens())
    stitched = {row["near"]: row["fvu"] for row in of_part.figures()["stitched"]}
    assert stitched[0.7] == pytest.approx(of_whole.figures()["fvu"], rel=1e-4)
    assert stitched[0.7] != pytest.approx(of_part.figures()["fvu"], rel=1e-2)


def test_the_same_tokens_in_other_pieces_give_the_same_counts(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = pair(lm, small_sae(d_sae=60), small_sae(d_sae=90, seed=1))
    whole = halves.measure(tokens())
    monkeypatch.setattr(compare, "_BATCH", 3)
    for one, other in zip(whole, halves.measure(tokens()), strict=True):
        np.testing.assert_array_equal(one.both, other.both)
        assert one.figures()["fvu"] == pytest.approx(other.figures()["fvu"], rel=1e-6)
