"""Shards on disk, and laying them end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sae_backend.core.activations import ActivationShard, StoredShard, by_latent, gather
from sae_backend.core.digests import checksum
from tests.core import brute

CONTEXTS, CTX_LEN, LATENTS = 12, 10, 9


def dense() -> np.ndarray:
    g = np.random.default_rng(0)
    acts = g.random((CONTEXTS * CTX_LEN, LATENTS)) * (g.random((CONTEXTS * CTX_LEN, LATENTS)) < 0.2)
    acts[:, 4] = 0
    acts[: 3 * CTX_LEN] = 0  # the first contexts of some shards are silent
    return acts.astype(np.float32)


def stored(folder: Path, acts: np.ndarray, size: int, order: int = 1) -> list[StoredShard]:
    """Shards of `size` contexts, saved in ascending (1) or descending (-1) order."""
    paths = []
    for lo in range(0, CONTEXTS, size)[::order]:
        part = acts[lo * CTX_LEN : (lo + size) * CTX_LEN]
        row = by_latent([brute.part(part)], LATENTS)
        tokens = np.arange(lo, lo + len(part) // CTX_LEN, dtype=np.uint32)[:, None].repeat(CTX_LEN, 1)
        paths.append(folder / "spool" / f"{lo}.safetensors")
        ActivationShard(lo, tokens, *row, {"tokens": len(part), "l0": {3: 1}}).save(paths[-1])
    return [StoredShard(p) for p in paths]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("size", [1, 5, CONTEXTS])
def test_shards_laid_end_to_end_are_the_whole(tmp_path: Path, size: int, order: int) -> None:
    acts = dense()
    shards = stored(tmp_path, acts, size, order)
    for lo, hi in [(0, LATENTS), (2, 3), (4, 5), (3, 8), (8, 9)]:
        ours, expected = gather(shards, lo, hi, CTX_LEN), brute.rows(acts[:, lo:hi])
        assert np.array_equal(ours.indptr, expected.indptr)
        assert np.array_equal(ours.token, expected.token)
        assert np.array_equal(ours.act, expected.act)


def test_a_shard_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    shard = stored(tmp_path, dense(), 5)[1]
    assert shard.lo == 5
    assert shard.tokens[:, 0].tolist() == [5, 6, 7, 8, 9]
    assert shard.sums == {"tokens": 50, "l0": {"3": 1}}


def test_a_shard_in_which_nothing_fires_is_kept_and_read(tmp_path: Path) -> None:
    shards = stored(tmp_path, np.zeros_like(dense()), CONTEXTS)
    assert gather(shards, 0, LATENTS, CTX_LEN).indptr.tolist() == [0] * (LATENTS + 1)


def test_saving_leaves_no_partial_file_and_replaces_what_was_there(tmp_path: Path) -> None:
    for _ in range(2):
        stored(tmp_path, dense(), CONTEXTS)
    assert [p.name for p in (tmp_path / "spool").iterdir()] == ["0.safetensors"]


def test_a_save_that_fails_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "0.safetensors"
    stored(tmp_path, dense(), CONTEXTS)
    before = path.read_bytes()
    empty = np.zeros(0, np.uint32)
    shard = ActivationShard(0, empty, np.zeros(1, np.int64), empty, np.zeros(0, np.float32), {"not": {"json"}})
    with pytest.raises(TypeError):
        shard.save(path)
    assert path.read_bytes() == before


def test_the_checksum_of_a_saved_shard_is_its_files(tmp_path: Path) -> None:
    path = tmp_path / "spool" / "0.safetensors"
    written = stored(tmp_path, dense(), CONTEXTS)
    saved = ActivationShard(0, written[0].tokens, *by_latent([brute.part(dense())], LATENTS), {}).save(path)
    assert saved == checksum(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert saved != checksum(path)
