"""Read what a stranger uploaded: containers by their bytes, sizes capped, nothing unpickled freely.

A raw pickle can run code, a zip can expand to terabytes, a tensor can claim memory that its file does not
hold: each is refused here, so that the formats see only plain tensors, numbers and text.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from .errors import CheckpointError
from .settings import listed

Kind = Literal["safetensors", "torch", "torch_legacy", "pickle", "npz", "zip", "gzip", "npy", "empty", "other"]

MAX_JSON = 1 << 20
MAX_DIGITS = 300  # of a whole number; floats have no more
MAX_TENSORS = 4096
MAX_PICKLE = 8 << 20
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TORCH_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
WRAPPERS = ("state_dict", "ae", "sae", "model_state_dict")
UNREADABLE: dict[str, str] = {
    "empty": "is empty; upload it again",
    "pickle": "is a raw pickle, which can run code when read; save the weights as safetensors instead",
    "torch_legacy": "is in torch's container from before 2020; save it again with a current torch",
    "gzip": "is compressed with gzip; uncompress it first",
    "zip": "is an archive without weights that this reads; unpack it and give the folder of one SAE",
}


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
        text = path.read_bytes().decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_int=_whole)
    except RecursionError:
        raise CheckpointError(f"{path.name} is nested too deeply to be a configuration.") from None
    except CheckpointError as error:
        raise CheckpointError(f"{path.name} {error}") from None
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON in UTF-8: {str(error)[:120]}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} holds a {type(value).__name__}; expected an object with named settings.")
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise CheckpointError(f"holds a number of {len(digits):,} digits, which no setting has.")
    return int(digits)


def read_safetensors(path: Path) -> dict[str, Any]:
    """Return all tensors of a safetensors file; the library itself checks offsets, overlaps and holes."""
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise CheckpointError(f"{path.name} has {len(names):,} tensors; no SAE has more than {MAX_TENSORS:,}.")
            return {name: file.get_tensor(name) for name in names}
    except CheckpointError:
        raise
    except Exception as error:  # whatever the library throws at a broken file is the file's fault
        raise CheckpointError(f"{path.name} is not a readable safetensors file ({_first_line(error)}).") from None


class _Configuration:
    """Stands in for the configuration objects that old libraries pickled beside the weights; it only holds values."""


KNOWN_CONFIGURATIONS = [
    (_Configuration, f"{module}.LanguageModelSAERunnerConfig")
    for module in ("sae_training.config", "sae_lens.training.config")
]


def read_torch(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state dict in a torch file, of dense CPU tensors, numbers and text, and what lies around it."""
    _check_torch_zip(path)
    try:
        with torch.serialization.safe_globals(list(KNOWN_CONFIGURATIONS)):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch documents none of what it throws at a hostile file
        if foreign := FOREIGN.search(str(error)):
            raise CheckpointError(
                f"{path.name} asks for the Python object {listed([foreign[1]])}, which might run code and is "
                "never loaded; save the state dict alone, with tensors and nothing else."
            ) from None
        raise CheckpointError(f"{path.name} is not a readable torch file ({_first_line(error)}).") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path.name} holds a {type(state).__name__}; expected a state dict of named tensors.")
    return _unwrapped(_plain(state, path.name), path.name)


def _unwrapped(state: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state dict inside a training checkpoint or an old pickle, and what was beside it there."""
    for key in WRAPPERS:
        inner = state.get(key)
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            return _plain(inner, name), {outer: value for outer, value in state.items() if outer != key}
    return state, {}


def _plain(state: dict[Any, Any], name: str) -> dict[str, Any]:
    """Return a dict whose own tensors are what they claim to be; those further down are not used."""
    if not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{name} has entries without names; expected a state dict of named tensors.")
    if len(state) > MAX_TENSORS:
        raise CheckpointError(f"{name} has {len(state):,} entries; no SAE has more than {MAX_TENSORS:,}.")
    plain: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            value = _plain_tensor(value, key)
        elif type(value) is _Configuration:
            value = dict(vars(value))
        plain[key] = value
    return plain


def _plain_tensor(tensor: Tensor, name: str) -> Tensor:
    """Refuse tensors that weights_only accepts but that hold less data than they claim, before any copy."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else f"{tensor.layout}, on {tensor.device}"
        raise CheckpointError(f"{listed([name])} is not a plain dense tensor ({kind}); save it dense and on the CPU.")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(f"{listed([name])} claims {tensor.numel():,} numbers but stores fewer; save a real copy.")
    return tensor.detach()


def _check_torch_zip(path: Path) -> None:
    """Refuse compressed, overlapping or encrypted members: torch writes none of these."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
        raise CheckpointError(f"{path.name} has two members of one name; save it again with torch.")
    if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 or m.file_size != m.compress_size for m in members):
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
        raise CheckpointError(f"{path.name} is a damaged zip archive or torch file; upload it again.") from None
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return "torch"
    return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]:
        raise CheckpointError(f"sets {listed(twice)} twice; keep one.")
    return dict(pairs)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
