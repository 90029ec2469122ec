"""How long a run that nobody has begun may take, by what the nearest earlier one took."""

from __future__ import annotations

from browser.queries import pace
from sae_backend.models import Run, Sae, SaeImport


def seconds(row: SaeImport) -> float | None:
    """Of one worker, for what an import is set to now; None while no similar run of its language model is known."""
    return sum(stages(row).values()) or None


def stages(row: SaeImport) -> dict[str, float]:
    """The same by the name of each stage; empty while nothing is known."""
    d_sae = (row.report.get("detected") or {}).get("d_sae")
    if row.lm is None or row.dataset is None or not d_sae:
        return {}
    tokens = min(row.dataset.n_tokens, row.max_tokens or row.dataset.n_tokens)
    wanted = Run(sae=Sae(lm=row.lm, d_sae=d_sae), tokens_total=tokens)
    cost = pace.of_earlier_runs([wanted]).get(wanted.pk)
    if cost is None:
        return {}
    return {"Contexts": tokens * cost.token, "Latents": d_sae * cost.latent, "Publish": d_sae * cost.publish}
