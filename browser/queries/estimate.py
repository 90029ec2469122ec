"""How long a run that nobody has begun may take, by what the nearest earlier one took."""

from __future__ import annotations

from browser.queries import pace
from sae_backend.models import Run, Sae, SaeImport


def seconds(row: SaeImport) -> float | None:
    """Of one worker, for what an import is set to now; None while no similar run of its language model is known."""
    d_sae = (row.report.get("detected") or {}).get("d_sae")
    if row.lm is None or row.dataset is None or not d_sae:
        return None
    tokens = min(row.dataset.n_tokens, row.max_tokens or row.dataset.n_tokens)
    wanted = Run(sae=Sae(lm=row.lm, d_sae=d_sae), tokens_total=tokens)
    cost = pace.of_earlier_runs([wanted]).get(wanted.pk)
    return None if cost is None else float(tokens * cost.token + d_sae * (cost.latent + cost.publish))
