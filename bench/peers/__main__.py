"""python -m bench.peers: CPU seconds of our pipeline and of its peers, one JSON object a line."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.peers import environment
from bench.peers.cases import AT_ONCE, BATCHES, DTYPES, Case, chosen
from bench.peers.inputs import Inputs
from bench.peers.job import BATCH, Job, scaled
from bench.peers.ours import Ours
from bench.report import line
from bench.site import site

Total = tuple[str, float, str]  # whose, CPU seconds, dtype


def main() -> None:
    cases = chosen()
    with site() as folder:
        inputs = Inputs(folder)
        ours = Ours(inputs.lm)
        for case in cases:
            try:
                _compare(case, inputs, ours)
            except environment.Unmeasured as reason:
                print(reason, file=sys.stderr, flush=True)


def _compare(case: Case, inputs: Inputs, ours: Ours) -> None:
    """Both sides in every dtype, then ratios within each dtype."""
    mine = {dtype: ours.spent(inputs.sae(case.d_sae), case.tokens, dtype) for dtype in DTYPES}
    for dtype, seconds in mine.items():
        line(f"ours_cpu_{case.size}_{dtype}", seconds, "CPU s, a whole run, PostgreSQL and Redis included")
    floors = {dtype: _floor(case, inputs, ours, dtype) for dtype in DTYPES}
    for name, seconds, dtype in _theirs(case, inputs, ours):
        line(f"{name}_over_ours_{case.size}_{dtype}", seconds / mine[dtype], f"ratio of CPU times{case.aim}")
        line(f"{name}_over_floor_{case.size}_{dtype}", seconds / floors[dtype], "the most that could be reached")


def _floor(case: Case, inputs: Inputs, ours: Ours, dtype: str) -> float:
    """CPU seconds below which no run of ours can come: F, and the products of the weights."""
    text, weights = ours.floor(inputs.sae(case.d_sae), case.tokens, dtype)
    line(f"floor_F_cpu_{case.size}_{dtype}", text, "CPU s, forward to the hook point, encoder, top k")
    line(f"floor_weights_cpu_{case.size}_{dtype}", weights, "CPU s, products of all pairs and with the unembedding")
    return text + weights


def _theirs(case: Case, inputs: Inputs, ours: Ours) -> list[Total]:
    """Totals of a peer, once its parts are printed."""
    tokens = inputs.tokens(ours.dataset(case.tokens))
    sae = inputs.sae(case.d_sae)
    with tempfile.TemporaryDirectory(dir=inputs.folder) as folder:
        job = Job(inputs.lm, sae, tokens, inputs.reference(sae, tokens), Path(folder), DTYPES, BATCHES, AT_ONCE)
        result = environment.measure(case.peer, job)
    name = f"{case.peer}_{case.size}"
    unit = "millionths of the largest activation, in float32, where both fire"
    line(f"{name}_max_difference", result["max_difference"] * 1e6, unit)
    line(f"{name}_fires_in_one_only", result["fires_in_one_only"], f"of {result['fires']} activations")
    return list(TOTALS[case.peer](case, result))


def _saedashboard(case: Case, result: dict[str, Any]) -> Iterator[Total]:
    batches = case.d_sae // BATCH
    for dtype, spent in result["spent"].items():
        whole = scaled(spent, batches)
        name = f"saedashboard_cpu_{case.size}_{dtype}"
        line(f"{name}_measured", sum(spent), f"CPU s, {len(spent)} of {batches} batches of {BATCH} latents")
        line(f"{name}_scaled", whole, f"CPU s, the first batch + {batches - 1} times the mean of the others")
        yield "saedashboard", whole, dtype


def _delphi(case: Case, result: dict[str, Any]) -> Iterator[Total]:
    name = f"delphi_cpu_{case.size}"
    for dtype, seconds in result["cache"].items():
        line(f"{name}_{dtype}_cache", seconds, "CPU s")
    for which, least in (("every", "a window"), ("frequent", "200 windows, its default")):
        constructor = result[f"constructor_{which}"]
        unit = f"CPU s, the {result[f'latents_{which}']} latents that fire in at least {least}"
        line(f"{name}_constructor_{which}", constructor, unit)
        for dtype, seconds in result["cache"].items():
            yield f"delphi_{which}", seconds + constructor, dtype


TOTALS = {"saedashboard": _saedashboard, "delphi": _delphi}

if __name__ == "__main__":
    main()
