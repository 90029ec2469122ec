"""A run's activations between its two stages: a file for each shard of contexts, where all workers find it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sae_backend import storage
from sae_backend.core.digests import checksum
from sae_backend.models import Run, RunShard

FOLDER = "spool"


class Lost(Exception):
    """Shards of contexts whose file is gone, or is not what was written."""

    def __init__(self, shards: Sequence[RunShard]) -> None:
        super().__init__(", ".join(name(shard) for shard in shards))
        self.shards = shards


def folder(run_id: int) -> str:
    """Where a run's activations wait for their latents."""
    return f"{FOLDER}/{run_id}"


def name(shard: RunShard) -> str:
    """Of this claim's file: a worker that lost its claim and wakes up later writes another."""
    return f"contexts-{shard.index:06d}-{shard.attempts}.safetensors"


def writing(shard: RunShard) -> AbstractContextManager[Path]:
    """Where on this host to write the shard's file; all workers have it once the block ends well."""
    return storage.current().writing(folder(shard.run_id), name(shard))


@contextmanager
def reading(shards: Iterable[RunShard]) -> Iterator[list[Path]]:
    """The files of these shards of a run, on this host as long as the block lasts."""
    shards = list(shards)
    names = [name(shard) for shard in shards]
    with storage.current().reading(folder(shards[0].run_id), names) as here:
        yield [here / each for each in names]


def missing(run: Run) -> list[int]:
    """Shards of contexts that are done but whose file is not there."""
    there = storage.current().names(folder(run.pk))
    done = run.shards.filter(kind=RunShard.Kind.CONTEXTS, state=RunShard.State.DONE).order_by("index")
    return [shard.index for shard in done if name(shard) not in there]


def verify(shards: Iterable[RunShard]) -> None:
    """Raise Lost for those of these shards of a run whose file is gone, or has not the checksum it was written with.

    A storage that cannot be reached has lost nothing: it raises what it does.
    """
    shards = list(shards)
    there = storage.current().names(folder(shards[0].run_id)) if shards else set()
    lost = [shard for shard in shards if name(shard) not in there or not _intact(shard)]
    if lost:
        raise Lost(lost)


def _intact(shard: RunShard) -> bool:
    try:
        with reading([shard]) as [path]:
            return checksum(path) == shard.checksum
    except OSError:
        return False


def remove(shard: RunShard) -> None:
    """Delete what a claim wrote that is no longer wanted."""
    storage.current().remove(folder(shard.run_id), [name(shard)])


def runs() -> set[int]:
    """Those that have activations."""
    return {int(each) for each in storage.current().folders(FOLDER) if each.isdigit()}


def empty(run_id: int) -> None:
    """Delete a run's activations."""
    storage.current().remove(folder(run_id))
