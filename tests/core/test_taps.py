"""Changes to a model's modules, each seen by the thread that asked for it alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from sae_backend.core.taps import Side, Taps
from tests.core.small import CONFIGS, small_lm

X = torch.ones(2, 3)


class Pair(nn.Module):
    """Returns a tuple, as many blocks do, and takes its input by name or place."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, str]:
        return hidden_states * 2, "kept"


@pytest.mark.parametrize(("side", "expected"), [("in", 22.0), ("out", 12.0), ("instead", 11.0)])
@pytest.mark.parametrize("named", [False, True])
def test_what_a_module_reads_writes_or_is_replaced_by_is_changed(side: Side, expected: float, named: bool) -> None:
    module, taps = Pair(), Taps()
    with taps.changed(module, side, lambda hidden: hidden + 10):
        found = module(hidden_states=X) if named else module(X)
    assert torch.equal(found if side == "instead" else found[0], torch.full_like(X, expected))
    assert side == "instead" or found[1] == "kept"
    assert torch.equal(module(X)[0], 2 * X)


@pytest.mark.parametrize("side", ["in", "out", "instead"])
def test_an_error_in_the_block_ends_the_change(side: Side) -> None:
    module, taps = Pair(), Taps()
    with pytest.raises(ZeroDivisionError), taps.changed(module, side, lambda hidden: hidden * 0):
        raise ZeroDivisionError
    assert torch.equal(module(X)[0], 2 * X)


def test_threads_change_one_module_each_in_its_own_way() -> None:
    module, taps, together = Pair(), Taps(), Barrier(4)

    def run(number: int) -> bool:
        if number == 0:  # a thread that asks for nothing
            together.wait()
            return torch.equal(module(X)[0], 2 * X)
        with taps.changed(module, "out", lambda hidden: hidden + number):
            together.wait()
            return all(torch.equal(module(X)[0], 2 * X + number) for _ in range(200))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(run, range(4)))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_forward_that_begins_between_blocks_is_the_spliced_forward(name: str, tmp_path: Path) -> None:
    lm = small_lm(tmp_path, name)
    tokens = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))
    for layer in (0, 1):
        hook_name = f"blocks.{layer}.hook_resid_post"
        new = lm.capture(tokens, hook_name) * 0.5 + 0.1
        expected = lm.splice(tokens, hook_name, lambda _, new=new: new)  # type: ignore[misc]
        assert torch.allclose(lm.resume(tokens, hook_name, new), expected, atol=1e-5)
        assert lm._forms[hook_name] is not None, "it was spliced after all"


def test_elsewhere_a_forward_is_run_whole(tmp_path: Path) -> None:
    lm = small_lm(tmp_path)
    tokens = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    for site in ("hook_mlp_out", "attn.hook_z", "hook_resid_pre", "hook_resid_mid"):
        new = lm.capture(tokens, f"blocks.1.{site}") * 0.5
        expected = lm.splice(tokens, f"blocks.1.{site}", lambda _, new=new: new)  # type: ignore[misc]
        assert torch.allclose(lm.resume(tokens, f"blocks.1.{site}", new), expected, atol=1e-5)


def test_lanes_capture_different_hook_points_of_one_model_at_once(tmp_path: Path) -> None:
    lm = small_lm(tmp_path)
    tokens = torch.randint(0, 256, (4, 20), generator=torch.Generator().manual_seed(0))
    sites = ("hook_resid_post", "hook_mlp_out", "attn.hook_z")
    names = [f"blocks.{layer}.{site}" for layer in (0, 1) for site in sites]
    alone = {name: lm.capture(tokens, name) for name in names}
    with ThreadPoolExecutor(6) as threads:
        for name, hidden in zip(names * 20, threads.map(lambda n: lm.capture(tokens, n), names * 20), strict=True):
            assert torch.allclose(hidden, alone[name], atol=1e-6)
