"""The files of a checkpoint, and one file of weights among them as a format looks at it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from . import npz
from .errors import CheckpointError
from .overrides import Overrides
from .reading import UNREADABLE, Kind, read_json, read_safetensors, read_torch, sniff
from .settings import listed

MAX_FILES = 1000
MAX_DEPTH = 6
MAX_BYTES = 64 << 30
MAX_YAML = 1 << 16
WEIGHTS = ("safetensors", "torch", "npz")
SIDECARS = ("*.json", "*.yaml", "*.yml")
PLAIN_SETTING = re.compile(r"^(\w+):[ \t]+(\S.*?)[ \t]*$", re.MULTILINE)


class Files:
    """The files of one checkpoint, by name relative to their folder, read on demand and at most once."""

    def __init__(self, path: Path, said: Overrides, max_bytes: int = MAX_BYTES) -> None:
        self.path, self.said, self.max_bytes = path, said, max_bytes
        self.paths = list_files(path)
        self._read: dict[str, dict[str, Any]] = {}
        self._around: dict[str, dict[str, Any]] = {}

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What each file is, judged by its first bytes."""
        return {name: sniff(path) for name, path in self.paths.items()}

    def sources(self) -> Iterator[Source]:
        """The files of weights, those nearest to the top first; only that which a person named, if any."""
        names = [name for name, kind in self.kinds.items() if kind in WEIGHTS]
        if self.said.file is not None and self.said.file not in names:
            raise CheckpointError(f"There is no file of weights {listed([self.said.file])}; there are {listed(names)}.")
        for name in sorted(names, key=lambda each: (each.count("/"), each)):
            if self.said.file in (None, name):
                yield Source(self, name)

    def keys(self, name: str) -> frozenset[str]:
        """Return what is in a file of weights."""
        return npz.keys(self.paths[name]) if self.kinds[name] == "npz" else frozenset(self.weights(name))

    def weights(self, name: str) -> dict[str, Any]:
        """Return the tensors (of torch files also plain values) of one file, where possible as views of it."""
        if name not in self._read:
            path = self.paths[name]
            if path.stat().st_size > self.max_bytes:
                raise CheckpointError(f"{name} is larger than {self.max_bytes:,} bytes, the limit set here.")
            if self.kinds[name] == "torch":
                weights, self._around[name] = read_torch(path)
            elif self.kinds[name] == "npz":
                weights = dict(npz.read(path, self.max_bytes))
            else:
                weights = read_safetensors(path)
            _check_sizes(weights, name, self.max_bytes)
            self._read[name] = weights
        return self._read[name]

    def storages(self) -> set[int]:
        """Return where the memory of all that was read begins."""
        tensors = [value for read in self._read.values() for value in read.values() if isinstance(value, Tensor)]
        return {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def around(self, name: str) -> dict[str, Any]:
        """Return what a torch file has beside its state dict: a configuration, a step."""
        self.weights(name)
        return self._around.get(name, {})

    def describe(self) -> str:
        """Return a sentence on what was found, for a checkpoint that no format recognises."""
        if keys := [f"{listed([source.name])} has {listed(sorted(source.keys))}" for source in self.sources()]:
            return f"No known format. {'; '.join(keys[:5])}. SAELens weights need their cfg.json."
        for name, kind in self.kinds.items():
            if kind in UNREADABLE:
                return f"{listed([name])} {UNREADABLE[kind]}."
        return f"There are no weights in {listed(self.paths)}: expected a .safetensors, .pt or .npz file."


@dataclass(frozen=True)
class Source:
    """One file of weights, what a person said about it, and the files around it."""

    files: Files
    name: str

    @property
    def said(self) -> Overrides:
        return self.files.said

    @property
    def keys(self) -> frozenset[str]:
        return self.files.keys(self.name)

    @property
    def weights(self) -> dict[str, Any]:
        return self.files.weights(self.name)

    @property
    def around(self) -> dict[str, Any]:
        return self.files.around(self.name)

    @property
    def is_torch(self) -> bool:
        return self.files.kinds[self.name] == "torch"

    def rank(self, key: str) -> int:
        """Return the number of dimensions of a tensor, -1 of anything else."""
        value = self.weights.get(key)
        return value.ndim if isinstance(value, Tensor) else -1

    def has(self, *keys: str) -> bool:
        """Say whether all these are in the file."""
        return set(keys) <= self.keys

    def sibling(self, filename: str) -> str:
        """Return the name of a file of the same folder."""
        return self.name.rpartition("/")[0] + "/" * ("/" in self.name) + filename

    def beside(self, filename: str) -> dict[str, Any] | None:
        """Return the JSON object in a file of the same folder, or None where there is none."""
        path = self.files.paths.get(self.sibling(filename))
        return None if path is None else read_json(path)

    def above(self, filename: str) -> dict[str, Any] | None:
        """Return the JSON object in the nearest such file of this folder and those that hold it."""
        folder = self.name
        while folder:
            folder = folder.rpartition("/")[0]
            path = self.files.paths.get(f"{folder}/{filename}".lstrip("/"))
            if path is not None:
                return read_json(path)
        return None

    def yaml(self, filename: str) -> Mapping[str, str]:
        """Return the plain `name: text` lines at the top level of a YAML file of this folder or one that holds it."""
        folder = self.name
        while folder:
            folder = folder.rpartition("/")[0]
            path = self.files.paths.get(f"{folder}/{filename}".lstrip("/"))
            if path is not None and path.stat().st_size <= MAX_YAML:
                text = path.read_bytes().decode("utf-8", "replace")
                return {name: value.strip("'\"") for name, value in PLAIN_SETTING.findall(text)}
        return {}

    @property
    def trail(self) -> str:
        """The last folders of the file's path, which published files tell their hook point by."""
        whole = self.files.path / self.name if self.files.path.is_dir() else self.files.path
        return "/".join(whole.absolute().parts[-8:])


def list_files(path: Path) -> dict[str, Path]:
    """Return the files of a folder to MAX_DEPTH, or a file and the settings beside it."""
    if path.is_file():
        beside = {p.name: p for pattern in SIDECARS for p in sorted(path.parent.glob(pattern)) if p.is_file()}
        return {path.name: path} | beside
    if not path.is_dir():
        raise CheckpointError(f"There is no file or folder {path}.")
    found: dict[str, Path] = {}
    for folder, subfolders, names in os.walk(path):
        here = Path(folder).relative_to(path)
        if len(here.parts) >= MAX_DEPTH - 1:
            subfolders.clear()
        found |= {(here / name).as_posix(): Path(folder) / name for name in names if (Path(folder) / name).is_file()}
        if len(found) > MAX_FILES:
            raise CheckpointError(f"{path} has more than {MAX_FILES:,} files; give the folder of one SAE.")
    if not found:
        raise CheckpointError(f"{path} is an empty folder.")
    return dict(sorted(found.items()))


def _check_sizes(weights: dict[str, Any], name: str, max_bytes: int) -> None:
    """Refuse what would not fit into the limit as float32, before anything is allocated."""
    needed = sum(4 * value.numel() for value in weights.values() if isinstance(value, Tensor))
    if needed > max_bytes:
        raise CheckpointError(f"{name} needs {needed:,} bytes in float32; the limit set here is {max_bytes:,}.")
