"""Read what a stranger uploaded: containers by their bytes, sizes capped, nothing unpickled freely.

A raw pickle can run code, a zip can expand to terabytes, a tensor can claim memory that its file does not
hold: each is refused here, so that the formats see only plain tensors, numbers and text.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import CheckpointError

Kind = Literal["safetensors", "torch", "torch_legacy", "pickle", "zip", "gzip", "npy", "empty", "other"]

MAX_FILES = 1000
MAX_DEPTH = 3
MAX_JSON = 1 << 20
MAX_TENSORS = 4096
MAX_PICKLE = 8 << 20
MAX_BYTES = 64 << 30
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
UNREADABLE: dict[str, str] = {
    "empty": "is empty; upload it again",
    "pickle": "is a raw pickle, which can run code when read; save the weights as safetensors instead",
    "torch_legacy": "is in torch's container from before 2020; save it again with a current torch",
    "gzip": "is compressed with gzip; uncompress it first",
    "zip": "is an archive without weights that this reads; unpack it and give the folder of one SAE",
}


@dataclass(frozen=True)
class Overrides:
    """What a person says about a checkpoint; each wins over what the files say, None says nothing."""

    hook_name: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None
    k: int | None = None
    input_norm: str | None = None
    input_scale: float | None = None


class Files:
    """The files of one checkpoint, by name relative to their folder, read on demand and at most once."""

    def __init__(self, path: Path, overrides: Overrides | None = None, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.overrides = overrides or Overrides()
        self.max_bytes = max_bytes
        self.paths = list_files(path)
        self._read: dict[str, dict[str, Any]] = {}

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What each file is, judged by its first bytes."""
        return {name: sniff(path) for name, path in self.paths.items()}

    def weights(self, name: str) -> dict[str, Any]:
        """Return the tensors (of torch files also plain values) of one file, as views of the mapped file."""
        if name not in self._read:
            read = read_safetensors if self.kinds[name] == "safetensors" else read_torch
            if self.paths[name].stat().st_size > self.max_bytes:
                raise CheckpointError(f"{name} is larger than {self.max_bytes:,} bytes, the limit set here.")
            self._read[name] = read(self.paths[name])
            _check_sizes(self._read[name], name, self.max_bytes)
        return self._read[name]

    def holding(self, *keys: str) -> list[str]:
        """Return the names of the weight files that have all these keys."""
        readable = [name for name, kind in self.kinds.items() if kind in ("safetensors", "torch")]
        return [name for name in sorted(readable) if set(keys) <= self.weights(name).keys()]

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the object in a JSON file, or None where there is no such file."""
        return read_json(self.paths[name]) if name in self.paths else None

    def describe(self) -> str:
        """Return a sentence on what was found, for a checkpoint that no format recognises."""
        keys = [f"{listed([name])} has {listed(self.weights(name))}" for name in self.holding()]
        if keys:
            return "; ".join(keys[:5]) + "."
        for name, kind in self.kinds.items():
            if kind in UNREADABLE:
                return f"{listed([name])} {UNREADABLE[kind]}."
        return f"There are no weights in {listed(self.paths)}: expected a .safetensors or .pt file."


def one(names: list[str], what: str) -> str:
    """Return the only name, or say that one must be chosen."""
    if len(names) != 1:
        raise CheckpointError(
            f"There are {len(names)} {what} here ({listed(names)}); give the path of one of them."
        )
    return names[0]


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Return names in a sentence, shortened: they come from strangers' files."""
    shown = [ascii(str(name)[:60])[1:-1] for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def sniff(path: Path) -> Kind:
    """Judge a file by its bytes, by its name only to say what is wrong with a broken safetensors file."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "empty"
    if head[:2] == b"PK":
        return _sniff_zip(path)
    if head[7:9] == b"\0{":
        return "safetensors"
    if head.startswith(TORCH_LEGACY):
        return "torch_legacy"
    starts: dict[bytes, Kind] = {b"\x1f\x8b": "gzip", b"\x93NUMPY": "npy", b"\x80": "pickle"}
    kind = next((kind for start, kind in starts.items() if head.startswith(start)), None)
    return kind or ("safetensors" if path.suffix == ".safetensors" else "other")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of at most MAX_JSON bytes; a setting given twice is refused."""
    if path.stat().st_size > MAX_JSON:
        raise CheckpointError(f"{path.name} is larger than {MAX_JSON:,} bytes, which no configuration is.")
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise CheckpointError(f"{path.name} is nested too deeply to be a configuration.") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path.name} {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON in UTF-8: {str(error)[:120]}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path.name} holds a {type(value).__name__}; expected an object with named settings."
        )
    return value


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return all tensors of a safetensors file; the library itself checks offsets, overlaps and holes."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise CheckpointError(
                    f"{path.name} has {len(names):,} tensors; no SAE has more than {MAX_TENSORS:,}."
                )
            return {name: file.get_tensor(name) for name in names}
    except CheckpointError:
        raise
    except Exception as error:  # whatever the library throws at a broken file is the file's fault
        raise CheckpointError(
            f"{path.name} is not a readable safetensors file ({_first_line(error)})."
        ) from None


def read_torch(path: Path) -> dict[str, Any]:
    """Return the flat state dict in a torch file: dense CPU tensors, numbers, text and dicts of these."""
    _check_torch_zip(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch documents none of what it throws at a hostile file
        if foreign := FOREIGN.search(str(error)):
            raise CheckpointError(
                f"{path.name} asks for the Python object {listed([foreign[1]])}, which might run code and is "
                "never loaded; save the state dict alone, with tensors and nothing else."
            ) from None
        raise CheckpointError(f"{path.name} is not a readable torch file ({_first_line(error)}).") from None
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"{path.name} holds a {type(state).__name__}; expected a state dict of named tensors."
        )
    if len(state) > MAX_TENSORS:
        raise CheckpointError(
            f"{path.name} has {len(state):,} entries; no SAE has more than {MAX_TENSORS:,}."
        )
    return {
        name: _plain_tensor(value, name) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def _plain_tensor(tensor: Tensor, name: str) -> Tensor:
    """Refuse tensors that weights_only accepts but that hold less data than they claim, before any copy."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, on {tensor.device}"
        raise CheckpointError(
            f"{listed([name])} is not a plain dense tensor ({kind}); save it dense and on the CPU."
        )
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(
            f"{listed([name])} claims {tensor.numel():,} numbers but stores fewer; save a real copy."
        )
    return tensor.detach()


def _check_sizes(weights: dict[str, Any], name: str, max_bytes: int) -> None:
    """Refuse what would not fit into the limit as float32, before anything is allocated."""
    needed = sum(4 * value.numel() for value in weights.values() if isinstance(value, Tensor))
    if needed > max_bytes:
        raise CheckpointError(
            f"{name} needs {needed:,} bytes in float32; the limit set here is {max_bytes:,}."
        )


def _check_torch_zip(path: Path) -> None:
    """Refuse compressed, overlapping or encrypted members: torch writes none of these."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{path.name} has two members of one name; save it again with torch.")
    if any(
        m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 or m.file_size != m.compress_size
        for m in members
    ):
        raise CheckpointError(f"{path.name} is a compressed or encrypted archive; torch.save writes neither.")
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise CheckpointError(f"{path.name} has members that overlap; save it again with torch.")
    if any(m.filename.endswith("data.pkl") and m.file_size > MAX_PICKLE for m in members):
        raise CheckpointError(f"{path.name} describes its tensors in more than {MAX_PICKLE:,} bytes.")


def _sniff_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # a damaged central directory has many faces
        raise CheckpointError(
            f"{path.name} is a damaged zip archive or torch file; upload it again."
        ) from None
    return "torch" if any(name.rpartition("/")[2] == "data.pkl" for name in names) else "zip"


def list_files(path: Path) -> dict[str, Path]:
    """Return the files of a folder to MAX_DEPTH, or a file and the JSON files beside it."""
    if path.is_file():
        return {path.name: path} | {p.name: p for p in sorted(path.parent.glob("*.json")) if p.is_file()}
    if not path.is_dir():
        raise CheckpointError(f"There is no file or folder {path}.")
    found: dict[str, Path] = {}
    for folder, subfolders, names in os.walk(path):
        here = Path(folder).relative_to(path)
        if len(here.parts) >= MAX_DEPTH - 1:
            subfolders.clear()
        found |= {
            (here / name).as_posix(): Path(folder) / name for name in names if (Path(folder) / name).is_file()
        }
        if len(found) > MAX_FILES:
            raise CheckpointError(f"{path} has more than {MAX_FILES:,} files; give the folder of one SAE.")
    if not found:
        raise CheckpointError(f"{path} is an empty folder.")
    return dict(sorted(found.items()))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise CheckpointError(f"sets {listed(twice)} twice; keep one.")
    return dict(pairs)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
