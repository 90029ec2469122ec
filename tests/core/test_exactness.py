"""Every figure of a run equals its definition on dense activations, however the work is cut, for any small SAE.

In two steps, so that no step needs a tolerance for decisions: what the shards of contexts hold equals the dense
activations by definition (to the bit where arithmetic is exact, see lattice.py), and every figure of the pages equals
its definition on just what the shards hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from sae_backend.core import run as core_run
from sae_backend.core.config import RunConfig
from sae_backend.core.fidelity import rotation
from sae_backend.core.language_model import LM
from sae_backend.core.results import ALIVE, DEAD, DENSE, RARE
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.packing import N_BINS, N_INTERVALS, RANDOM, TOP, bin_edges
from tests.core import brute
from tests.core.lattice import D_IN, HOOK, exact_sae, hidden_of, table_lm
from tests.core.outcome import Cut, Outcome, Page, run
from tests.core.small import small_sae

KINDS: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "topk": {"architecture": "topk"},
    "topk by decoder norm": {"architecture": "topk", "rank_by_decoder_norm": True},
    "jumprelu": {"architecture": "jumprelu"},
    "batchtopk": {"architecture": "batchtopk"},
    "gated": {"architecture": "gated"},
    "tanh_relu": {"architecture": "tanh_relu"},
}
SEPARATOR = 256


@dataclass(frozen=True)
class Case:
    sae: SparseAutoencoder = field(repr=False)
    tokens: np.ndarray
    special: set[int]
    cfg: RunConfig
    cut: Cut

    @property
    def counted(self) -> np.ndarray:
        return self.cfg.count_special | np.isin(self.tokens, list(self.special), invert=True)


@st.composite
def texts(draw: st.DrawFn) -> np.ndarray:
    """Contexts of few different tokens, so that windows repeat; some contexts are separators alone."""
    g = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, ctx_len = draw(st.integers(1, 9)), draw(st.sampled_from([20, 5, 2, 1]))
    tokens = g.integers(0, draw(st.sampled_from([40, 3, 1])), (n, ctx_len))
    tokens[g.random((n, ctx_len)) < draw(st.sampled_from([0, 0.2, 0.7]))] = SEPARATOR
    tokens[g.random(n) < draw(st.sampled_from([0, 0.3]))] = SEPARATOR
    return tokens.astype(np.uint32)


@st.composite
def configs(draw: st.DrawFn) -> RunConfig:
    return RunConfig(
        count_special=draw(st.booleans()),
        seed=draw(st.integers(0, 5)),
        top=draw(st.integers(1, 6)),
        per_interval=draw(st.integers(1, 5)),
        random=draw(st.integers(0, 10)),
        duplicate_reach=draw(st.sampled_from([2, 8, 0])),
        fidelity_every=draw(st.integers(1, 3)),
        ce_contexts=draw(st.integers(1, 4)),
        sample_every=draw(st.integers(1, 2)),
    )


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    order = draw(st.permutations(range(9)))
    return Cut(draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 9)), order)


@st.composite
def exact_cases(draw: st.DrawFn, kind: dict[str, Any]) -> Case:
    d_sae, scale = draw(st.integers(2, 24)), draw(st.sampled_from([0.5, 1.0, 2.0]))
    scales = {"input_scale": scale, "output_scale": 1 / scale, "subtract_b_dec": draw(st.booleans())}
    sae = exact_sae(**kind, **scales, d_sae=d_sae, seed=draw(st.integers(0, 2**32)), k=draw(st.integers(1, d_sae)))
    special = {SEPARATOR} | draw(st.sampled_from([set(), {1}]))
    return Case(sae, draw(texts()), special, draw(configs()), draw(cuts()))


@st.composite
def rounded_cases(draw: st.DrawFn, kind: dict[str, Any]) -> Case:
    norm = draw(st.sampled_from(["none", "layer_norm", "constant_norm"]))
    d_sae = draw(st.sampled_from([16, 32, 70]))  # below 12 columns MKL's sums depend on a row's place among the others
    scales = {"input_scale": draw(st.sampled_from([1.0, 0.7])), "output_scale": draw(st.sampled_from([1.0, 1.3]))}
    k = {"k": draw(st.integers(1, d_sae))} if kind["architecture"] == "topk" else {}
    options = {"input_norm": norm, "subtract_b_dec": draw(st.booleans()), "hook_name": HOOK, "d_in": D_IN}
    sae = small_sae(**kind, **scales, **k, **options, d_sae=d_sae, seed=draw(st.integers(0, 2**32)))
    return Case(sae, draw(texts()), {SEPARATOR}, draw(configs()), draw(cuts()))


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LM]:
    return lru_cache(lambda *which: table_lm(tmp_path_factory.mktemp("lm"), *which))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of a shard of latents as unlike as those of a large one."""
    monkeypatch.setattr(core_run, "PIECE_LATENTS", (2, 5))
    monkeypatch.setattr(core_run, "PIECE_FIRINGS", 40)


def computed(case: Case, lm: LM, cut: Cut | None = None, **changes: Any) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        cfg = replace(case.cfg, **changes)
        return run(case.sae, lm, case.tokens, case.special, cfg, Path(folder), cut or case.cut)


def defined(case: Case, lm: LM, what: Callable[[SparseAutoencoder, np.ndarray], np.ndarray]) -> np.ndarray:
    """what(sae, hidden) [contexts ctx_len …] at the counted tokens, zero at the others."""
    values = what(case.sae, hidden_of(lm, case.tokens)[case.counted])
    out = np.zeros((*case.tokens.shape, values.shape[1]), values.dtype)
    out[case.counted] = values
    return out


def several(examples: int) -> Callable[..., Any]:
    """The same examples at every test run."""
    return settings(max_examples=examples, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_where_arithmetic_is_exact_so_is_every_figure(lms: Callable[..., LM], kind: dict[str, Any]) -> None:
    @several(15)
    @given(exact_cases(kind))
    def holds(case: Case) -> None:
        lm = lms(True)
        ours, expected = computed(case, lm), defined(case, lm, brute.canonical)
        assert np.array_equal(ours.acts > 0, expected > 0)
        if kind["architecture"] == "tanh_relu":
            assert np.allclose(ours.acts, expected, rtol=1e-6, atol=0)
        else:
            assert np.array_equal(ours.acts, expected)
        assert_margins(case, lm, ours)
        assert_pages(case, ours)
        assert_fidelity(case, lm, ours, rel=1e-5)

    holds()


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_where_arithmetic_rounds_figures_are_those_of_what_fires(lms: Callable[..., LM], kind: dict[str, Any]) -> None:
    @several(10)
    @given(rounded_cases(kind))
    def holds(case: Case) -> None:
        lm = lms(False)
        ours, expected = computed(case, lm), defined(case, lm, brute.canonical)
        close = np.isclose(ours.acts, expected, rtol=1e-4, atol=1e-4)
        assert (close | defined(case, lm, brute.doubtful).astype(bool)).all()
        assert_pages(case, ours)
        assert_fidelity(case, lm, ours, rel=1e-3)
        whole = computed(case, lm, Cut())
        assert_same_pages(ours, whole)
        assert ours.figures["l0_histogram"] == whole.figures["l0_histogram"]
        for name in ("mse", "fvu", "normalised_mse", "l0"):
            assert ours.figures[name] == about(whole.figures[name], 1e-6), name

    holds()


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_bfloat16_is_as_exact_where_its_arithmetic_is(lms: Callable[..., LM], kind: str) -> None:
    @several(5)
    @given(exact_cases(KINDS[kind]))
    def holds(case: Case) -> None:
        ours = computed(case, lms(True, torch.bfloat16), dtype="bfloat16")
        assert np.array_equal(ours.acts, defined(case, lms(True), brute.canonical))
        assert of_firings(ours) == of_firings(computed(case, lms(True), Cut()))

    holds()


def about(value: float | None, rel: float) -> Any:
    return None if value is None else pytest.approx(value, rel=rel)


def of_firings(outcome: Outcome) -> list[Page]:
    return [replace(page, dimensionality=None, decoder={}) for page in outcome.pages]


def assert_same_pages(ours: Outcome, others: Outcome) -> None:
    """To the last bit, but for D_i and the effects on the logits: products of weights that round by their place."""
    assert of_firings(ours) == of_firings(others)
    for a, b in zip(ours.pages, others.pages, strict=True):
        assert a.dimensionality == about(b.dimensionality, 1e-6)
        assert a.decoder == {n: None if x is None else pytest.approx(x, 1e-5, 1e-6) for n, x in b.decoder.items()}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_text_of_special_tokens_alone_has_pages_and_no_figures(lms: Callable[..., LM], kind: dict[str, Any]) -> None:
    tokens = np.full((3, 4), SEPARATOR, np.uint32)
    sae = exact_sae(**kind, d_sae=12, seed=0, k=3)
    ours = computed(Case(sae, tokens, {SEPARATOR}, RunConfig(), Cut(2, 2, 5)), lms(True))
    undefined = ("l0", "mse", "fvu", "normalised_mse", "ce", "basis_kurtosis")
    assert [ours.figures[name] for name in undefined] == [None] * len(undefined)
    assert ours.figures["tokens"] == ours.figures["fidelity_tokens"] == 0
    for page in ours.pages:
        assert (page.stats["firings"], page.stats["status"], page.stats["max_act"]) == (0, DEAD, None)
        assert not page.examples and not page.bins and not any(page.intervals) and not any(page.sparks)


def assert_pages(case: Case, ours: Outcome) -> None:
    if not case.counted.any():
        return  # the test above
    live = ours.acts[case.counted].any(0)
    for i, page in enumerate(ours.pages):
        acts = ours.acts[:, :, i]
        assert_statistics(page, acts[case.counted])
        assert_histograms(page, acts[case.counted])
        assert_examples(case, page, acts)
        assert page.dimensionality == about(brute.dimensionality(case.sae, i, live), 1e-5)
        assert_neighbours(case.sae, i, page)


def assert_margins(case: Case, lm: LM, ours: Outcome) -> None:
    """On the contexts that are looked at; the first of equal ones is kept, here where arithmetic is exact."""
    every = 4 * case.cfg.sample_every
    margins = np.where(case.counted[..., None], defined(case, lm, brute.margins), -np.inf)[::every]
    for i, page in enumerate(ours.pages):
        best = margins[:, :, i].max(1)
        there = np.isfinite(best) & (case.sae.W_dec[i].norm().item() > 0)
        assert page.margin == (pytest.approx(best.max(), rel=1e-5, abs=1e-5) if there.any() else None)
        order = [c for c in np.argsort(-best.round(4), kind="stable").tolist() if there[c]]
        places = [(every * c, int(margins[c, :, i].round(4).argmax())) for c in order[:5]]
        assert [(c, p) for c, p, _ in page.misses] == ([] if page.stats["firings"] else places)


def assert_statistics(page: Page, acts: np.ndarray) -> None:
    expected = brute.stats(acts)
    assert {n for n, x in page.stats.items() if x is None} == {n for n, x in expected.items() if np.isnan(x)}
    for name, value in expected.items():
        assert page.stats[name] is None or page.stats[name] == pytest.approx(value, rel=1e-9), name
    n, density = expected["firings"], expected["density"]
    few = RARE if density < 1e-5 or n < 10 else DENSE if density > 0.1 else ALIVE
    assert page.stats["status"] == (few if n else DEAD)


def assert_histograms(page: Page, acts: np.ndarray) -> None:
    counts = np.histogram(acts[acts > 0].astype(np.float64), bin_edges(np.arange(N_BINS + 1)))[0]
    assert page.bins == {j: n for j, n in enumerate(counts.tolist()) if n}
    expected = np.bincount(brute.band(acts), minlength=N_INTERVALS + 1)[1:] if acts.any() else np.zeros(N_INTERVALS)
    assert page.intervals == expected.tolist()
    bars = np.bincount(brute.band(acts, 18), minlength=19)[1:] if acts.any() else np.zeros(18)
    assert page.sparks == np.ceil(255 * np.sqrt(bars / max(1, bars.max()))).tolist()


def assert_examples(case: Case, page: Page, acts: np.ndarray) -> None:
    tops = brute.top_contexts(acts, case.tokens, case.cfg.top, case.cfg.duplicate_reach)
    assert page.places(TOP) == tops
    assert page.strongest == list(dict.fromkeys(int(case.tokens[place]) for place in tops))[:3]
    bands = brute.band(acts) if acts.any() else np.zeros(acts.shape, int)
    for kind in range(1, RANDOM + 1):
        places = page.places(kind)
        of_kind, wanted = (bands == kind, case.cfg.per_interval) if kind < RANDOM else (bands > 0, case.cfg.random)
        assert len(places) == len(set(places)) == min(wanted, of_kind.sum())
        assert all(of_kind[place] for place in places)
    for e in page.examples:
        assert e.row == {p: x for p, x in enumerate(acts[e.context].tolist()) if x}
    order = [(e.kind, -e.row[e.peak], e.context, e.peak) for e in page.examples]
    assert order == sorted(order)


def assert_neighbours(sae: SparseAutoencoder, i: int, page: Page) -> None:
    cos = brute.cosines(sae, i)
    assert page.decoder["decoder_norm"] == pytest.approx(sae.W_dec[i].norm().item() * sae.cfg.output_scale, rel=1e-6)
    for found, sign, name in [(page.nearest, 1, "nearest_cos"), (page.opposing, -1, "opposing_cos")]:
        expected = sorted((sign * cos[np.isfinite(cos)]).tolist(), reverse=True)[:10]
        assert [sign * x for _, x in found] == pytest.approx(expected, abs=1e-6)
        assert [x for _, x in found] == pytest.approx([cos[j] for j, _ in found], abs=1e-6)
        assert len({j for j, _ in found}) == len(found)
        assert page.decoder[name] == (found[0][1] if found else None)


def assert_fidelity(case: Case, lm: LM, ours: Outcome, rel: float) -> None:
    counts = (ours.acts > 0).sum(2)[case.counted]
    values, n = np.unique(counts, return_counts=True)
    assert ours.figures["tokens"] == len(counts)
    assert ours.figures["l0_histogram"] == [[v, m] for v, m in zip(values.tolist(), n.tolist(), strict=True)]
    assert ours.figures["l0"] == (pytest.approx(counts.mean()) if len(counts) else None)
    sample = np.zeros(case.counted.shape, bool)
    sample[:: case.cfg.fidelity_every] = True
    x = hidden_of(lm, case.tokens)[sample & case.counted].astype(np.float64)
    assert ours.figures["fidelity_tokens"] == len(x)
    expected = brute.fidelity(x, brute.reconstruction(case.sae, x))
    assert {name: ours.figures[name] for name in expected} == {name: about(v, rel) for name, v in expected.items()}
    sample[np.arange(len(sample)) % (4 * case.cfg.fidelity_every) > 0] = False
    x = hidden_of(lm, case.tokens)[sample & case.counted].astype(np.float64)
    if len(x):
        rotated = x @ rotation(D_IN, torch.device("cpu")).numpy().astype(np.float64)
        kurtosis = {"plain": brute.kurtosis(x).mean(), "rotated": brute.kurtosis(rotated).mean()}
        assert {n: ours.figures["basis_kurtosis"][n] for n in kurtosis} == pytest.approx(kurtosis, rel=1e-4)
    assert_cross_entropies(case, lm, ours.figures["ce"])


def assert_cross_entropies(case: Case, lm: LM, ours: dict[str, Any] | None) -> None:
    sample = brute.evenly(len(case.tokens), case.cfg.ce_contexts)
    tokens, counted = torch.from_numpy(case.tokens[sample].astype(np.int64)), case.counted[sample]
    if not counted[:, :-1].any():
        assert ours is None
        return
    x = hidden_of(lm, case.tokens[sample])
    replacements = {"clean": x[counted], "spliced": brute.reconstruction(case.sae, x[counted]), "zero": 0.0}
    assert ours is not None
    assert ours["tokens"] == counted[:, :-1].sum()
    for name, replacement in replacements.items():
        x[counted] = replacement
        assert ours[name] == pytest.approx(cross_entropy_from(lm, tokens, x, counted), rel=1e-4), name


def cross_entropy_from(lm: LM, tokens: torch.Tensor, hidden: np.ndarray, counted: np.ndarray) -> float:
    """Mean nats of the token after each counted one when block 0 reads `hidden`, by a hook of torch's own."""
    read = torch.from_numpy(hidden.copy())
    handle = lm.hf.transformer.h[0].register_forward_pre_hook(lambda module, args: (read, *args[1:]))
    with torch.no_grad():
        logits = lm.hf(tokens).logits
    handle.remove()
    mask = torch.from_numpy(counted[:, :-1])
    return float(cross_entropy(logits[:, :-1][mask].double(), tokens[:, 1:][mask]))
