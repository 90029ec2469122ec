"""A batch that does not fit into memory is halved, and the results are those of any other batch size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import resource, sys
from dataclasses import replace
import numpy as np, torch
from sae_backend.core.config import RunConfig
from sae_backend.core.run import ContextPass, RunError
from tests.core.small import small_lm, small_sae, save_lm
from sae_backend.core import language_model
from pathlib import Path

torch.set_num_threads(1)
wide = dict(n_embd=64, n_inner=16384, max_position_embeddings=256)
lm = language_model.load(str(save_lm(Path(sys.argv[1]), **wide)))
sae = small_sae(d_in=64)
tokens = np.random.default_rng(0).integers(0, 256, (32, 256)).astype(np.uint32)
cfg = RunConfig(batch_contexts=1)
alone = ContextPass(sae, lm, cfg, set()).shard(tokens, 0, 32, lambda n: None)
contexts = ContextPass(sae, lm, replace(cfg, batch_contexts=32), set())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    together = contexts.shard(tokens, 0, 32, lambda n: None)
except RunError as error:
    print("refused:", error)
    sys.exit()
assert np.array_equal(alone.indptr, together.indptr)
assert np.array_equal(alone.token, together.token)
assert np.array_equal(alone.act, together.act)
print("size", contexts.size)
"""


def run(folder: Path, mebibytes: int) -> str:
    # one arena: what a thread reserves ahead would count against the limit
    command = [sys.executable, "-c", SCRIPT, str(folder), str(mebibytes)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's memory is Linux's here")
def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits(tmp_path: Path) -> None:
    size = int(run(tmp_path, 400).split()[-1])  # a batch of 16 contexts wants 256 MiB at once, several times over
    assert 1 <= size < 16


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's memory is Linux's here")
def test_a_context_too_large_for_the_memory_is_refused_with_what_to_do(tmp_path: Path) -> None:
    assert "Use a device with more memory" in run(tmp_path, 8)
