"""The comparison with other tools: what can be seen without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.peers import agreement, cases
from bench.peers.job import Job, contexts_at_once, scaled


def test_the_first_batch_of_latents_counts_once_and_the_mean_of_the_others_for_all_the_rest() -> None:
    assert scaled([10.0, 4.0, 6.0], batches=32) == 10 + 31 * 5


def test_batches_that_were_all_measured_are_added_and_not_scaled() -> None:
    assert scaled([10.0, 4.0, 6.0], batches=3) == 20
    assert scaled([7.0], batches=1) == 7


def test_one_batch_is_not_scaled_because_it_holds_what_the_others_do_not_repeat() -> None:
    with pytest.raises(ValueError, match="two batches"):
        scaled([10.0], batches=32)


def test_wider_saes_get_fewer_contexts_at_once_and_never_none(tmp_path: Path) -> None:
    job = Job(*[tmp_path] * 5, ["bfloat16"], 2)
    assert [contexts_at_once(job, 256, width) for width in (4096, 16384, 65536)] == [4, 1, 1]
    assert contexts_at_once(replace(job, at_once=64), 256, 4096) == 64


def test_activations_are_the_same_after_they_were_kept_sparse(tmp_path: Path) -> None:
    acts = np.array([[0, 2, 0], [1, 0, 0.5]], np.float32)
    agreement.save(tmp_path / "acts.npz", acts)
    assert np.array_equal(agreement.load(tmp_path / "acts.npz"), acts)


def test_a_difference_is_relative_to_the_largest_activation_and_a_swapped_latent_is_counted() -> None:
    ours = np.array([[0, 2, 0], [1, 0, 0.5]], np.float32)
    assert agreement.difference(ours, ours) == {"max_difference": 0.0, "fires_in_one_only": 0, "fires": 3}
    theirs = np.array([[0, 1.5, 0], [1, 0.4, 0]], np.float32)
    assert agreement.difference(ours, theirs) == {"max_difference": 0.25, "fires_in_one_only": 2, "fires": 4}


def test_a_job_reads_back_as_it_was_written(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("lm", "sae", "tokens.npy", "reference.npz")]
    job = Job(*paths, tmp_path, ["bfloat16"], 2)
    assert Job.read(str(job.write())) == job
    job.done({"cache": 1.5})
    assert job.result() == {"cache": 1.5}


def test_comparisons_are_chosen_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PEERS", "delphi:4096x65536")
    assert cases.chosen() == [cases.Case("delphi", 4096, 65536)]


@pytest.mark.parametrize("word", ["neuronpedia:4096x65536", "delphi", "delphi:4096", "delphi:4096xmany"])
def test_a_comparison_that_is_none_is_refused_with_an_example(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_PEERS", word)
    with pytest.raises(SystemExit, match="as in saedashboard:4096x65536"):
        cases.chosen()
