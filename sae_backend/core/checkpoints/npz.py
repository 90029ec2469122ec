"""NumPy archives, read member by member: nothing is unpickled, and nothing expands beyond what it declares."""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy
from torch import Tensor

from .errors import CheckpointError
from .settings import listed

MAX_MEMBERS = 4096
MAX_HEADER = 10_000
MAX_RATIO = 100
STORED_AS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
LOCAL_HEADER = struct.Struct("<26xHH")
PIECE = 1 << 24


def keys(path: Path) -> frozenset[str]:
    """Return the names of the arrays, without reading one."""
    with zipfile.ZipFile(path) as archive:
        return frozenset(name.removesuffix(".npy") for name in archive.namelist())


def read(path: Path, max_bytes: int) -> dict[str, Tensor]:
    """Return all arrays of numbers: views of the mapped file where it is not compressed, else copies."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive.infolist(), max_bytes)
            return {each.filename.removesuffix(".npy"): _member(archive, each, path) for each in archive.infolist()}
    except CheckpointError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each throw their own at a broken file
        said = listed([(str(error).splitlines() or [""])[0] or type(error).__name__])
        raise CheckpointError(f"{path.name} is not a readable NumPy archive ({said}).") from None


def _check(path: Path, members: list[zipfile.ZipInfo], max_bytes: int) -> None:
    if len(members) > MAX_MEMBERS or len({m.filename for m in members}) < len(members):
        raise CheckpointError(f"{path.name} has too many members or two of one name; save it again with NumPy.")
    if any(m.compress_type not in STORED_AS or m.flag_bits & 1 for m in members):
        raise CheckpointError(f"{path.name} is encrypted or compressed with what NumPy does not use; save it again.")
    if any(m.file_size > MAX_RATIO * max(1, m.compress_size) for m in members):
        raise CheckpointError(f"{path.name} expands more than {MAX_RATIO} times, which no weights do.")
    if sum(m.compress_size for m in members) > path.stat().st_size:
        raise CheckpointError(f"{path.name} has members that overlap; save it again with NumPy.")
    if (needed := sum(m.file_size for m in members)) > max_bytes:
        raise CheckpointError(f"{path.name} needs {needed:,} bytes; the limit set here is {max_bytes:,}.")


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Tensor:
    name = listed([member.filename])
    with archive.open(member) as file:
        shape, fortran, dtype = _header(file)
        if dtype.kind not in "fi" or dtype.hasobject or not dtype.isnative:
            raise CheckpointError(f"{name} holds {dtype}; expected an array of floating-point numbers.")
        n, at = math.prod(shape), file.tell()
        if min(shape, default=0) < 0 or at + n * dtype.itemsize != member.file_size:
            raise CheckpointError(f"{name} is not as long as its shape says; save it again.")
        stored = member.compress_type == zipfile.ZIP_STORED and n > 0
        flat = _mapped(path, member, at, n, dtype) if stored else _copied(file, n, dtype, name)
    whole = torch.from_numpy(flat)
    return whole.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran else whole.reshape(shape)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(file)
    if version not in read_header:
        raise CheckpointError(f"An array is in version {version} of NumPy's format; save it again.")
    return read_header[version](file, max_header_size=MAX_HEADER)


def _mapped(path: Path, member: zipfile.ZipInfo, at: int, n: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Map n numbers that lie in the file as they are; copy-on-write, which spares us torch's warning."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        names = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    return np.memmap(path, dtype, "c", member.header_offset + LOCAL_HEADER.size + sum(names) + at, (n,))


def _copied(file: IO[bytes], n: int, dtype: np.dtype[Any], name: str) -> npt.NDArray[Any]:
    flat = np.empty(n, dtype)
    rest = flat.view(np.uint8).data
    while rest:
        piece = file.read(min(PIECE, len(rest)))
        if not piece:
            raise CheckpointError(f"{name} ends before its last number; upload it again.")
        rest[: len(piece)] = piece
        rest = rest[len(piece) :]
    return flat
