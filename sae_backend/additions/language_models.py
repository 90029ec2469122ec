"""A language model on its way in: looked at before it is downloaded, and loaded once, to a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from django.conf import settings

from sae_backend import kept, registry
from sae_backend.additions.folders import allowed_folder
from sae_backend.core import bootable, hub, language_model
from sae_backend.core.language_model import LM, LanguageModelError
from sae_backend.intake import limits
from sae_backend.models import Addition

if TYPE_CHECKING:
    from sae_backend.additions.worker import Held


def add(held: Held) -> None:
    """Its files, wherever they are, once they have been seen to boot."""
    row = held.row
    with _files_of_lm(held) as (source, revision):
        architecture = _checked(Path(language_model.folder(source, revision or None)), row.source)
        held.stage(f"reading its weights as {architecture}")
        lm = registry.register_lm(row.name, source, revision, _booted(architecture), row.owner_id)
        held.finish(made_lm=lm)


@contextmanager
def _files_of_lm(held: Held) -> Iterator[tuple[str, str]]:
    """Source and revision under which this host finds the files, once they are here."""
    row = held.row
    if row.origin == Addition.Origin.HUB:
        yield row.source, _downloaded(held)
    else:
        yield str(row.source if row.options.get("anywhere") else allowed_folder(row.source)), ""


def _downloaded(held: Held) -> str:
    """Bring a language model's files into the hub's cache, having seen from the small ones that it is of use."""
    row = held.row
    held.stage("asking the hub")
    token = bool(row.options.get("token"))
    there = hub.look("model", row.source, row.revision, token=token, silence=settings.HUB_SILENCE_SECONDS)
    bootable.check_names(there.files, row.source)
    files = bootable.wanted(there.files)
    config = bootable.read_config(hub.fetch(there, "config.json"))
    bootable.check_config(config, row.source)
    _check_room(config, _weights(files), row.source)
    limits.check_room(_cache(), sum(files.values()))
    report = held.stage("downloading", sum(files.values()), "bytes")
    before = 0
    for name, size in sorted(files.items(), key=lambda item: item[1]):
        hub.fetch(there, name, lambda done, before=before: report(before + done))  # type: ignore[misc]
        before += size
        report(before)
    return there.commit


def _cache() -> Path:
    """Where the hub's files go, or, as long as nothing has, what will hold it."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE).absolute()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _checked(folder: Path, where: str) -> str:
    """The class of the model in a folder that has all it needs and fits into this worker."""
    files = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    bootable.check_names(files, where)
    config = bootable.read_config(folder / "config.json")
    architecture = bootable.check_config(config, where)
    if bootable.INDEX in files:
        bootable.check_index(bootable.read_config(folder / bootable.INDEX), files, where)
    _check_room(config, _weights(files), where)
    return architecture


def _weights(files: dict[str, int]) -> int:
    return sum(size for name, size in files.items() if name.endswith(".safetensors"))


def _check_room(config: dict[str, Any], weights: int, where: str) -> None:
    """Refuse what does not fit, beside nothing: what is kept of other models gives way."""
    try:
        bootable.check_memory(config, weights, kept.compute_dtype(), kept.free(), kept.device(), where)
    except LanguageModelError:
        kept.forget_models()
        bootable.check_memory(config, weights, kept.compute_dtype(), kept.free(), kept.device(), where)


def _booted(architecture: str) -> Callable[[str], LM]:
    """Loads a language model as runs will, and sees that TransformerLens can name its hook points."""

    def load(source: str) -> LM:
        dtype = getattr(torch, kept.compute_dtype())
        lm = language_model.load(source, dtype, kept.device())
        try:
            lm.width(f"blocks.{lm.bridge.cfg.n_layers // 2}.hook_resid_post")
        except Exception as error:
            raise LanguageModelError(
                f"TransformerLens has an adapter for {architecture}, but cannot boot this model with it: "
                f"{type(error).__name__}: {str(error)[:300]}"
            ) from error
        return lm

    return load
