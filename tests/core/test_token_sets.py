"""Sets of tokens by their bytes, and logit effects on them against brute force and planted directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae_backend.core.decoder import Decoder
from sae_backend.core.language_model import Unembedding
from sae_backend.core.token_sets import TokenSets, token_sets
from tests.core.small import D_MODEL, small_sae
from tests.core.test_decoder import sae_of

THRESHOLD = 6  # browser.enrichment.NOTABLE

WORDS = [
    (b" the", {"leading space", "function words"}),
    (b"The", {"no leading space", "capitalised", "function words"}),
    (b" While", {"leading space", "capitalised", "function words"}),
    (b" while", {"leading space", "function words", "Python keywords"}),
    (b"None", {"no leading space", "capitalised", "Python keywords"}),
    (b"none", {"no leading space"}),
    (b" HTTP", {"leading space", "upper case"}),
    (b"A", {"no leading space", "function words"}),
    (b"ing", {"no leading space"}),
    (b" 42", {"leading space", "digits"}),
    (b"0", {"digits"}),
    (b"0x", set()),
    ("٣".encode(), {"non-ASCII"}),  # a digit, but not of 0 to 9
    (b"):", {"punctuation", "closing brackets"}),
    (b" ([", {"leading space", "punctuation", "opening brackets"}),
    (b" ", {"whitespace"}),
    (b"\n    ", {"whitespace", "line break"}),
    (b"x\r", {"no leading space", "line break"}),
    (" été".encode(), {"leading space", "non-ASCII"}),
    (b"\xc3", {"parts of characters"}),
    (b"\xa9 the", {"parts of characters"}),
    (b"", set()),
]


@pytest.mark.parametrize(("token", "expected"), WORDS, ids=[repr(t) for t, _ in WORDS])
def test_a_token_is_in_the_sets_that_its_bytes_say(token: bytes, expected: set[str]) -> None:
    sets = token_sets([token], [False])
    assert {name for name, of in zip(sets.names, sets.member, strict=True) if of[0]} == expected
    assert not token_sets([token], [True]).member.any()  # a special token


def test_a_run_keeps_the_sets_names_sizes_and_version() -> None:
    told = token_sets([w for w, _ in WORDS], [False] * len(WORDS)).described()
    assert told["version"] == 1 and told["d_vocab"] == len(WORDS)
    assert {s["name"]: s["size"] for s in told["sets"]}["digits"] == 2
    assert all(s["means"] for s in told["sets"])


def z_of(W_dec: np.ndarray, W_U: torch.Tensor, sets: TokenSets) -> np.ndarray:
    sae = sae_of(W_dec)
    whole, live = Decoder(sae, Unembedding(W_U), sets=sets), torch.ones(len(W_dec), dtype=torch.bool)
    z = whole.facts(0, len(W_dec), live, whole.directions.products(live)).enrichment
    assert z is not None
    return z


def random_sets(d_vocab: int, sizes: list[int], seed: int = 0) -> TokenSets:
    rng, names = np.random.default_rng(seed), tuple(map(str, sizes))
    member = np.zeros((len(sizes), d_vocab), bool)
    for row, m in zip(member, sizes, strict=True):
        row[rng.permutation(d_vocab)[:m]] = True
    return TokenSets(names, names, member)


def test_z_is_the_mean_effect_in_standard_errors_of_a_draw_without_replacement() -> None:
    sae, V = small_sae(), 20_000  # more than are held at once
    W_U = torch.randn(D_MODEL, V, generator=torch.Generator().manual_seed(1)) + 1
    sets = random_sets(V, [1, 7, 5_000, V - 1])
    d = sae.W_dec.double().numpy()
    effect = d / np.linalg.norm(d, axis=1, keepdims=True) @ W_U.double().numpy()
    effect -= effect.mean(1, keepdims=True)
    ours = z_of(sae.W_dec.numpy(), W_U, sets)
    for k, of in enumerate(sets.member):
        m = of.sum()
        error = effect.std(1) * np.sqrt((V - m) / (m * (V - 1)))
        assert ours[:, k] == pytest.approx(effect[:, of].mean(1) / error, rel=1e-4, abs=1e-4)


def test_a_set_drawn_at_random_is_enriched_as_chance_has_it() -> None:
    V = 500
    W_U = torch.randn(64, V, generator=torch.Generator().manual_seed(2))
    rows = np.random.default_rng(0).standard_normal((20, 64))
    z = z_of(rows, W_U, random_sets(V, [50] * 300)).astype(float)
    assert np.abs(z.mean()) < 0.1 and z.std() == pytest.approx(1, abs=0.05)


def test_a_direction_towards_the_digits_is_enriched_in_digits_and_in_nothing_unrelated() -> None:
    words = [f"w{i}" for i in range(1500)] + [f" w{i}" for i in range(1500)]
    words += [str(i) for i in range(100)] + ["(", ")", "é", "\n", " the", " while", "[", "]", "Abc", "ABC"] * 5
    sets = token_sets([w.encode() for w in words], [False] * len(words))
    W_U = torch.randn(256, len(words), generator=torch.Generator().manual_seed(3))
    planted = W_U[:, torch.from_numpy(sets.member[sets.names.index("digits")])].sum(1)
    z = dict(zip(sets.names, z_of(np.stack([planted.numpy(), -planted.numpy()]), W_U, sets).T, strict=True))
    assert z["digits"][0] > 12 and z["digits"][1] < -12
    # all else is below average only because digits are above: no set of them stands out
    assert all(abs(other[0]) < THRESHOLD for name, other in z.items() if name != "digits" and not np.isnan(other[0]))
    assert np.isnan(z["parts of characters"]).all()  # this vocabulary has none


def test_without_sets_an_unembedding_or_a_direction_nothing_is_enriched() -> None:
    sae, live = small_sae(), torch.ones(70, dtype=torch.bool)
    W_U, sets = torch.randn(D_MODEL, 90), random_sets(90, [9])
    for unembedding, given in ((None, sets), (Unembedding(W_U), None), (Unembedding(W_U[1:]), sets)):
        whole = Decoder(sae, unembedding, sets=given)
        assert whole.facts(0, 70, live, whole.directions.products(live)).enrichment is None
    rows = np.eye(D_MODEL)[:3]
    rows[1] = 0
    assert np.isnan(z_of(rows, W_U, sets)).ravel().tolist() == [False, True, False]


@pytest.mark.parametrize("width", [80, 100])
def test_an_unembedding_of_another_width_than_the_vocabulary_has_the_tokens_it_shares(width: int) -> None:
    sets, W_U = random_sets(90, [20]), torch.randn(D_MODEL, width, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(
        z_of(np.eye(D_MODEL), W_U, sets), z_of(np.eye(D_MODEL), W_U, sets.fitted(width)), equal_nan=True
    )
    assert sets.fitted(width).member.shape == (1, width)


@pytest.mark.parametrize("size", [1, 3, 70])
def test_z_has_the_same_bits_in_shards_of_any_size(size: int) -> None:
    g = np.random.default_rng(0)
    sae, sets, live = sae_of(g.standard_normal((70, 256))), random_sets(300, [5, 90]), torch.ones(70, dtype=torch.bool)
    whole = Decoder(sae, Unembedding(torch.randn(256, 300, generator=torch.Generator().manual_seed(0))), sets=sets)
    products = whole.directions.products(live)

    def z(step: int) -> np.ndarray:
        parts = [whole.facts(lo, min(70, lo + step), live, products).enrichment for lo in range(0, 70, step)]
        return np.concatenate([part for part in parts if part is not None])

    assert np.array_equal(z(size), z(70))
