"""A run's activations between its two stages: a file for each shard of contexts, where all workers find it."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from sae_backend.models import Run, RunShard


def folder(run_id: int) -> Path:
    """Where a run's activations wait for their latents; on storage that all workers share."""
    return settings.STORE_DIR / "spool" / str(run_id)


def file(shard: RunShard) -> Path:
    """Of this claim of the shard: a worker that lost its claim and wakes up later writes another."""
    return folder(shard.run_id) / f"contexts-{shard.index:06d}-{shard.attempts}.safetensors"


def missing(run: Run) -> list[int]:
    """Shards of contexts that are done but whose file is not there."""
    done = run.shards.filter(kind=RunShard.Kind.CONTEXTS, state=RunShard.State.DONE).order_by("index")
    return [shard.index for shard in done if not file(shard).exists()]
