"""python -m bench.peers: CPU seconds of our pipeline and of its peers, one JSON object a line."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.peers import environment
from bench.peers.cases import BATCHES, DTYPES, Case, chosen
from bench.peers.inputs import Inputs
from bench.peers.job import BATCH, Job, scaled
from bench.peers.ours import Ours
from bench.report import line
from bench.site import site


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
    sae = inputs.sae(case.d_sae)
    for dtype in DTYPES:
        mine = ours.spent(sae, case.tokens, dtype)
        line(f"ours_cpu_{case.size}_{dtype}", mine, "CPU s, a whole run, PostgreSQL and Redis included")
        for name, theirs in _theirs(case, inputs, ours, dtype).items():
            line(f"{name}_over_ours_{case.size}_{dtype}", theirs / mine, "ratio of CPU times")


def _theirs(case: Case, inputs: Inputs, ours: Ours, dtype: str) -> dict[str, float]:
    """Totals of a peer by name, once its parts are printed."""
    tokens = inputs.tokens(ours.dataset(case.tokens))
    sae = inputs.sae(case.d_sae)
    with tempfile.TemporaryDirectory(dir=inputs.folder) as folder:
        job = Job(inputs.lm, sae, tokens, inputs.reference(sae, tokens), Path(folder), dtype, BATCHES)
        result = environment.measure(case.peer, job)
    name = f"{case.peer}_{case.size}"
    agreed = "over the largest activation, float32, where both fire"
    line(f"{name}_max_difference", result["max_difference"], agreed)
    line(f"{name}_fires_in_one_only", result["fires_in_one_only"], f"of {result['fires']} activations")
    return REPORTS[case.peer](case, dtype, result)


def _saedashboard(case: Case, dtype: str, result: dict[str, Any]) -> dict[str, float]:
    spent, batches = result["spent"], case.d_sae // BATCH
    whole = scaled(spent, batches)
    name = f"saedashboard_cpu_{case.size}_{dtype}"
    line(f"{name}_measured", sum(spent), f"CPU s, {len(spent)} of {batches} batches of {BATCH} latents")
    line(f"{name}_scaled", whole, f"CPU s, the first batch + {batches - 1} times the mean of the others")
    return {"saedashboard": whole}


def _delphi(case: Case, dtype: str, result: dict[str, Any]) -> dict[str, float]:
    name = f"delphi_cpu_{case.size}_{dtype}"
    line(f"{name}_cache", result["cache"], "CPU s")
    line(f"{name}_constructor", result["constructor"], f"CPU s, {result['records']} latents that fire")
    few = f"CPU s, {result['frequent']} latents that fire in 200 windows or more"
    line(f"{name}_constructor_frequent", result["constructor_frequent"], few)
    return {
        "delphi": result["cache"] + result["constructor"],
        "delphi_frequent": result["cache"] + result["constructor_frequent"],
    }


REPORTS = {"saedashboard": _saedashboard, "delphi": _delphi}

if __name__ == "__main__":
    main()
