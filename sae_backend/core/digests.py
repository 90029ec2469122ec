"""Checksums of files of activations. Torch-free: who only moves files asks for them too."""

from __future__ import annotations

from pathlib import Path

import xxhash

_BLOCK = 1 << 22  # bytes read at once


class Digest:
    """XXH3 in 63 bits, as databases count: it finds what storage does to files, not what people do on purpose."""

    def __init__(self) -> None:
        self._running = xxhash.xxh3_64()

    def update(self, part: bytes | memoryview) -> None:
        self._running.update(part)

    def value(self) -> int:
        return self._running.intdigest() >> 1


def checksum(path: Path) -> int:
    """Digest of a whole file."""
    digest = Digest()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.value()
