"""How a worker adds a language model or a dataset: alone, with signs of life, to a row or to a sentence."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from django.db.models import QuerySet
from django.db.models.functions import Now

from sae_backend import additions, faults, gathering, kept, locks, queue, registry
from sae_backend.core import bootable, hub, language_model
from sae_backend.core.language_model import LM, LanguageModelError
from sae_backend.core.text import TextError
from sae_backend.helpful import HELPFUL, sentence
from sae_backend.models import Addition
from sae_backend.pulse import Abandoned, Pulse

State = Addition.State
MAX_ATTEMPTS = 5  # that no worker survived: what ends each of them would do so for ever
SENTENCES = (*HELPFUL, TextError, hub.HubError, additions.AdditionError)
logger = logging.getLogger(__name__)


@dataclass
class Held:
    """An addition in this worker's hands, as long as it is wanted and no other worker has taken it up."""

    row: Addition
    pulse: Pulse

    @property
    def mine(self) -> QuerySet[Addition]:
        return _mine(self.row)

    def stage(self, words: str, total: int | None = None, unit: str = "") -> Callable[[int], None]:
        """Say what is done now; what comes back takes how much of it is, and raises Abandoned when it is over."""
        self.mine.update(stage=words, done=0, total=total, unit=unit)
        self.pulse.report(0)
        return self.pulse.report


def _mine(row: Addition) -> QuerySet[Addition]:
    return Addition.objects.filter(pk=row.pk, attempts=row.attempts, state=State.RUNNING)


def add(addition_id: int) -> None:
    """Add what waits, unless another worker is at it or nobody wants it any more."""
    with locks.alone("addition", addition_id) as mine:
        row = Addition.objects.select_related("lm", "owner").filter(pk=addition_id).first()
        if mine and row is not None and row.state in additions.OPEN and _taken_up(row):
            _explained(row)


def _taken_up(row: Addition) -> bool:
    as_read = Addition.objects.filter(pk=row.pk, attempts=row.attempts, state=row.state)
    row.attempts, row.state = row.attempts + 1, State.RUNNING
    now = {"heartbeat_at": Now(), "started_at": Now()}
    return bool(as_read.update(attempts=row.attempts, state=row.state, done=0, total=None, error="", **now))


def _explained(row: Addition) -> None:
    """Leave a sentence where it cannot be added; what passes is tried again."""
    try:
        if row.attempts > MAX_ATTEMPTS:
            raise LanguageModelError(f"{MAX_ATTEMPTS} workers ended over this, perhaps for want of memory: give more")
        with Pulse(lambda done: bool(_mine(row).update(heartbeat_at=Now(), done=done))) as pulse:
            WORK[row.kind](Held(row, pulse))
    except Abandoned:
        if _mine(row).update(attempts=row.attempts - 1, state=State.QUEUED):  # this process was told to end
            queue.send_addition(row.pk)
    except Exception as error:
        if isinstance(error, faults.DATABASE):
            faults.leave_broken_connection()
        if faults.passes(error):
            with suppress(*faults.DATABASE):
                _mine(row).update(attempts=row.attempts - 1)
            raise
        words = str(error) if isinstance(error, SENTENCES) else sentence(error)
        _mine(row).update(state=State.FAILED, error=words, done_at=Now())
        if not isinstance(error, SENTENCES):
            raise


# ---- language models ---------------------------------------------------------------------------------


def _add_lm(held: Held) -> None:
    row = held.row
    with _files_of_lm(held) as (source, revision):
        architecture = _checked(Path(language_model.folder(source, revision or None)), row.source)
        held.stage(f"reading its weights as {architecture}")
        lm = registry.register_lm(row.name, source, revision, _booted(architecture), row.owner_id)
        _finish(held, made_lm=lm)


@contextmanager
def _files_of_lm(held: Held) -> Iterator[tuple[str, str]]:
    """Source and revision under which this host finds the files, once they are here."""
    row = held.row
    if row.origin == Addition.Origin.HUB:
        yield row.source, _downloaded(held)
    else:
        yield str(row.source if row.options.get("anywhere") else additions.allowed_folder(row.source)), ""


def _downloaded(held: Held) -> str:
    """Bring a language model's files into the hub's cache, having seen from the small ones that it is of use."""
    row = held.row
    held.stage("asking the hub")
    there = hub.look("model", row.source, row.revision, token=bool(row.options.get("token")))
    bootable.check_names(there.files, row.source)
    files = bootable.wanted(there.files)
    config = bootable.read_config(hub.fetch(there, "config.json"))
    bootable.check_config(config, row.source)
    _check_room(config, _weights(files), row.source)
    report = held.stage("downloading", sum(files.values()), "bytes")
    before = 0
    for name, size in sorted(files.items(), key=lambda item: item[1]):
        hub.fetch(there, name, lambda done, before=before: report(before + done))  # type: ignore[misc]
        before += size
        report(before)
    return there.commit


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
        bootable.check_memory(config, weights, kept.compute_dtype(), _free(), kept.device(), where)
    except LanguageModelError:
        kept.forget_models()
        bootable.check_memory(config, weights, kept.compute_dtype(), _free(), kept.device(), where)


def _free() -> int:
    """Bytes of memory that a model may take on this worker's device."""
    if kept.device().startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(kept.device()))[0])
    return min(psutil.virtual_memory().available, _left_to_container())


def _left_to_container() -> int:
    """What the limit of a container leaves; no limit is a large number."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):
        return 1 << 62


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


# ---- datasets ----------------------------------------------------------------------------------------


def _add_dataset(held: Held) -> None:
    row, options = held.row, held.row.options
    lm = row.lm
    assert lm is not None
    ctx_len, most = options.get("ctx_len") or min(256, lm.n_ctx), options.get("max_tokens")
    with gathering.documents(held) as (documents, recipe):
        report = held.stage("tokenizing", most, "tokens")
        dataset = registry.register_dataset(
            row.name, row.source, lm, documents, ctx_len, most, report, recipe, row.owner_id
        )
        _finish(held, made_dataset=dataset)


def _finish(held: Held, **made: Any) -> None:
    """Done, unless it was cancelled at the last moment."""
    if not held.mine.update(state=State.DONE, done_at=Now(), **made):
        raise Abandoned


WORK: dict[str, Callable[[Held], None]] = {Addition.Kind.MODEL: _add_lm, Addition.Kind.DATASET: _add_dataset}
