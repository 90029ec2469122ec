"""A run's activations between its two stages: a file for each shard of contexts, where all workers find it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash
from django.conf import settings

from sae_backend.models import Run, RunShard

BLOCK = 1 << 22


class Lost(Exception):
    """Shards of contexts whose file is gone, or is not what was written."""

    def __init__(self, shards: Sequence[RunShard]) -> None:
        super().__init__(", ".join(file(shard).name for shard in shards))
        self.shards = shards


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


def checksum(path: Path) -> int:
    """XXH32 of a file: it finds what storage does to files, not what people do on purpose."""
    digest = xxhash.xxh32()
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.intdigest()


def verify(shards: Iterable[RunShard]) -> None:
    """Raise Lost for those of these shards whose file does not have the checksum it was written with."""
    lost = [shard for shard in shards if not _intact(shard)]
    if lost:
        raise Lost(lost)


def _intact(shard: RunShard) -> bool:
    try:
        return checksum(file(shard)) == shard.checksum
    except OSError:
        return False


def remove(run_id: int) -> None:
    """Delete a run's activations."""
    shutil.rmtree(folder(run_id), ignore_errors=True)
