"""Two small SAEs of the demo's hook point with published runs, and what one of them has of the other is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sae_backend import jobs
from sae_backend.core import checkpoints
from sae_backend.core.checkpoints import exporting
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.models import Dataset, LanguageModel, Sae
from tests.backend import demo, messages

SHARED, ONLY_SMALL, ONLY_LARGE, K = 40, 10, 20, 12
PARENT = SHARED  # in the smaller; the larger has two children of it in its place
SMALL, LARGE = SHARED + 1 + ONLY_SMALL, SHARED + 2 + ONLY_LARGE
COS = 0.85


def weights() -> tuple[SparseAutoencoder, SparseAutoencoder]:
    """The smaller: latents 0 … 50 of the demo's. The larger: its first 40 in reverse order, two children of latent 40
    that it lies between, and 20 others."""
    whole = checkpoints.load(demo.SAE)
    small = part(whole, list(range(SMALL)))
    large = part(whole, [*range(SHARED - 1, -1, -1), PARENT, PARENT, *range(200, 200 + ONLY_LARGE)])
    parent, apart = unit(whole.W_dec[PARENT]), torch.randn(256, generator=torch.Generator().manual_seed(0))
    apart = unit(apart - (apart @ parent) * parent)
    for row, sign in ((SHARED, 1), (SHARED + 1, -1)):
        large.W_dec[row] = COS * parent + sign * (1 - COS**2) ** 0.5 * apart
    return small, large


def unit(row: torch.Tensor) -> torch.Tensor:
    return row / row.norm()


def part(whole: SparseAutoencoder, latents: list[int]) -> SparseAutoencoder:
    cfg = replace(whole.cfg, d_sae=len(latents), k=K)
    return SparseAutoencoder(
        cfg, whole.W_enc[:, latents].contiguous(), whole.b_enc[latents].clone(), whole.W_dec[latents].clone(),
        whole.b_dec.clone(),
    )  # fmt: skip


def saes(lm: LanguageModel, dataset: Dataset, folder: Path) -> tuple[Sae, Sae]:
    """The smaller and the larger, each with a published run."""
    rows = []
    for name, sae in zip(("small", "large"), weights(), strict=True):
        exporting.export(sae, folder / name)
        row = demo.an_import(lm, source=folder / name)
        jobs.import_sae(row.pk)
        row.refresh_from_db()
        assert row.sae is not None, row.error
        jobs.new_run(row.sae, dataset, **demo.QUICK)
        rows.append(row.sae)
    messages.carry_out()
    for row in rows:
        row.refresh_from_db()
        assert row.current_run_id is not None
    return rows[0], rows[1]
