"""A dataset on its way in: from text to a row with contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae_backend import registry
from sae_backend.additions import documents

if TYPE_CHECKING:
    from sae_backend.additions.worker import Held


def add(held: Held) -> None:
    """Its text, wherever it is, as contexts of a language model's tokens."""
    row, options = held.row, held.row.options
    lm = row.lm
    assert lm is not None
    ctx_len, most = options.get("ctx_len") or min(256, lm.n_ctx), options.get("max_tokens")
    with documents.of(held) as (found, recipe):
        report = held.stage("tokenizing", most, "tokens")
        dataset = registry.register_dataset(
            row.name, row.source, lm, found, ctx_len, most, report, recipe, row.owner_id
        )
        held.finish(made_dataset=dataset)
