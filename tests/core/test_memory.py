"""A batch that does not fit into memory is halved, with equal results, and a figure beside is left out; a checkpoint is
loaded in twice its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_backend.core.shortage import if_it_fits

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


BESIDE = """
import resource, sys
from pathlib import Path
import numpy as np, torch
from sae_backend.core import language_model, layers
from sae_backend.core.shortage import if_it_fits
from tests.core.small import save_lm

torch.set_num_threads(1)
lm = language_model.load(str(save_lm(Path(sys.argv[1]), n_embd=64, n_inner=65536, max_position_embeddings=256)))
tokens = np.random.default_rng(0).integers(0, 256, (1, 256)).astype(np.uint32)
assert if_it_fits(lambda: layers.basis_by_layer(lm, tokens, set()))["tokens"] == 256
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit = used + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
print(if_it_fits(lambda: layers.basis_by_layer(lm, tokens, set())))
"""


def run(folder: Path, mebibytes: int, script: str = SCRIPT) -> str:
    # one arena: what a thread reserves ahead would count against the limit
    command = [sys.executable, "-c", script, str(folder), str(mebibytes)]
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


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on a process's memory is Linux's here")
def test_a_figure_beside_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    assert run(tmp_path, 8, BESIDE).split()[-1] == "None"


def test_other_errors_than_of_memory_are_raised() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        if_it_fits(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))


LOADING = """
import resource, sys
from pathlib import Path
from sae_backend.core.checkpoints import detect, load

def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024

def used():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

size = sum(p.stat().st_size for p in Path(sys.argv[1]).iterdir())
load("tests/fixtures/saelens/standard")
open("/proc/self/clear_refs", "w").write("5")
before = used()
detect(sys.argv[1])
headers = peak() - before
load(sys.argv[1])
print(headers / size, (peak() - before) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is Linux's here")
@pytest.mark.parametrize("kind", ["saelens", "rescaled", "openai", "npz"])
def test_loading_takes_about_twice_the_files_memory_and_detecting_next_to_none(tmp_path: Path, kind: str) -> None:
    write_checkpoint(tmp_path, kind)
    command = [sys.executable, "-c", LOADING, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]
    headers, whole = (float(share) for share in found.stdout.split())
    assert headers < 0.2
    assert whole < 2.3


def write_checkpoint(folder: Path, kind: str) -> None:
    """A hundred megabytes of weights in float32."""
    g = torch.Generator().manual_seed(0)
    sizes = {"W_enc": (512, 25_600), "b_enc": (25_600,), "W_dec": (25_600, 512), "b_dec": (512,)}
    weights = {name: torch.randn(*size, generator=g) for name, size in sizes.items()}
    if kind == "npz":
        arrays = {name: each.numpy() for name, each in (weights | {"threshold": torch.ones(25_600)}).items()}
        np.savez(folder / "params.npz", **arrays)
    elif kind == "openai":
        linear = {"encoder.weight": weights["W_enc"].T.contiguous(), "decoder.weight": weights["W_dec"].T.contiguous()}
        biases = {"pre_bias": weights["b_dec"], "latent_bias": weights["b_enc"]}
        torch.save(linear | biases | {"activation": "ReLU"}, folder / "a.pt")
    else:
        cfg = {"architecture": "topk", "k": 32, "d_in": 512, "rescale_acts_by_decoder_norm": kind == "rescaled"}
        (folder / "cfg.json").write_text(json.dumps(cfg))
        save_file(weights, folder / "sae_weights.safetensors")
