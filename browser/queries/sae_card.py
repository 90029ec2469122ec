"""What an SAE's card says: its figures and the histogram of its densities, all out of its run's summary."""

from __future__ import annotations

from browser.card import Facts, fitted
from browser.queries.latent_card import drawable
from browser.queries.sae_list import ARCHITECTURES
from browser.queries.saes import ResolvedSae
from browser.templatetags import latent_tags as printed


def facts(resolved: ResolvedSae) -> Facts:
    sae, summary = resolved.sae, resolved.run.summary
    kind = f"{ARCHITECTURES.get(sae.architecture, sae.architecture)} {sae.k or ''}".strip()
    of = " / ".join((sae.lm.name, sae.hook_name, f"{kind}, {printed.thousands(sae.d_sae)} latents"))
    histogram = summary.get("density_histogram") or {}
    counts = histogram.get("counts") or []
    measured = f"Densities on {resolved.run.dataset.name}, {printed.count(summary.get('tokens'))} tokens"
    if any(counts):
        low, high = histogram["low"], histogram["low"] + histogram["step"] * len(counts)
        measured += f", from 1e{low:.0f} to 1e{high:.0f}, logarithmic"
    return Facts(
        fitted(drawable(" ".join(sae.name.split()))),
        f"sae:{resolved.pin}",
        drawable(" ".join(of.split())),
        (),
        _figures(resolved),
        tuple(100 * n / max(counts) for n in counts) if any(counts) else (),
        (),
        drawable(f"{measured}."),
        accent=0,
    )


def _figures(resolved: ResolvedSae) -> tuple[tuple[str, str], ...]:
    summary = resolved.run.summary
    counts = summary.get("counts") or {}
    return (
        ("Alive", printed.thousands(counts.get("alive"))),
        ("Dead", printed.thousands(counts.get("dead"))),
        ("L0", printed.fixed(summary.get("l0"), 1)),
        ("FVU", printed.fixed(summary.get("fvu"), 3)),
        ("CE recovered", printed.percent((summary.get("ce") or {}).get("recovered"))),
        ("Nearest cos", printed.fixed(summary.get("mean_nearest_cos"))),
    )
