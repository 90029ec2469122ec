"""What a worker finds out about a checkpoint before anybody decides: what it is, whether it fits, and how it does.

The report, as JSON in SaeImport.report:

    detected   core.detected.Detected: format, shapes, hook point, notes
    questions  what the files leave open, each with its sentence; the check goes as far as it can without answers
    checks     [{name, state: ok | warn | fail, text, figure}], of the container, the weights and the hook point
    fits       [{id, name, hook_point, sure}], language models that have the hook point with this width
    trial      core.trial.Trial: L0, FVU and a verdict on a few thousand tokens, and the seconds that they took
    identity   the digits of the weights' hash that the page's address will have
    here       the SAE that these weights are already: {public_id, name, lm, aside}; aside: it is another's, so that a
               run takes the place of none of its pages
    hub        where they came from: {id, commit, bytes}
    lm, options, dataset   what it was checked with; ready: whether it can be started with these
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from django.conf import settings
from django.db.models.functions import Now

from sae_backend import intake, kept, ownership, packing, queue, store
from sae_backend.core import checkpoints, hub, precision
from sae_backend.core.checkpoints import CheckpointError, checks
from sae_backend.core.detected import Check, Detected, Question
from sae_backend.core.language_model import LM, LanguageModelError
from sae_backend.core.run import RunError
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.trial import Trial, trial
from sae_backend.intake import fits, from_hub
from sae_backend.intake.errors import explained
from sae_backend.intake.importing import CHECK, Held, carry_out
from sae_backend.models import Dataset, LanguageModel, Sae, SaeImport
from sae_backend.pulse import Abandoned

TRIAL_TOKENS, TRIAL_WORK = 4096, 1 << 31  # tokens, and tokens × latents: nobody waits minutes for a first look
TOO_LONG = (
    "the check took longer than {:,.0f} s (CHECK_SECONDS) and was given up: try it with a smaller language model or "
    "dataset, or ask whoever runs this site"
)
State = SaeImport.State


def check_import(import_id: int) -> None:
    """Read what has arrived of an import, and report; then it waits for its owner, or goes on by itself."""
    carry_out(import_id, CHECK, _check)


def _check(held: Held) -> None:
    report: dict[str, Any] = {}
    began = time.monotonic()
    error = ""
    try:
        _look(held, report)
    except (CheckpointError, LanguageModelError, RunError, hub.HubError, intake.IntakeError) as refused:
        error = str(refused)
        _ask(report, getattr(refused, "question", None))
    report["seconds"] = round(time.monotonic() - began, 2)
    _settle(held, report, error)


def _look(held: Held, report: dict[str, Any]) -> None:
    """Everything, into the report as it is found, so that what was found before an error is kept."""
    row = held.row
    if row.from_hub:
        came = row.report.get("hub") if row.files.exists() else None  # those that are here stay
        report["hub"] = came or from_hub.bring(row, held.pulse.report)
    held.allow(settings.CHECK_SECONDS, TOO_LONG.format(settings.CHECK_SECONDS))
    with explained(), intake.source_of(row) as source:
        held.pulse.report(0)
        detected = checkpoints.detect(source, **row.options)
        _describe(row, detected, report)
        _choose(row, report)
        sae = checkpoints.load(source, **row.options)
        held.pulse.report(0)
        report["checks"] += [asdict(each) for each in checks.static(sae)]
        digest = sae.identity()
        report["identity"], report["here"] = Sae(sha256=digest).public_id, _here(row, digest)
        _fit_and_try(held, sae, report)


def _describe(row: SaeImport, detected: Detected, report: dict[str, Any]) -> None:
    report["detected"] = asdict(detected)
    report["checks"] = []
    for question in detected.questions:
        _ask(report, question)
    report["fits"] = fits.of(detected.hook_name, detected.hook_name_out, detected.d_in)


def _ask(report: dict[str, Any], question: Question | None) -> None:
    asked = report.setdefault("questions", [])
    if question is not None and question.field not in [each["field"] for each in asked]:
        asked.append(asdict(question))


def _choose(row: SaeImport, report: dict[str, Any]) -> None:
    """The language model and dataset, where the person left them open and there is no doubt."""
    if row.lm is None:
        row.lm = fits.chosen(report["fits"], report["detected"]["lm_name"])
        report["chosen_lm"] = row.lm is not None
    if row.dataset is None and row.lm is not None:
        row.dataset = Dataset.objects.filter(lm=row.lm, ready=True).order_by("pk").first()


def _here(row: SaeImport, digest: str) -> dict[str, Any] | None:
    known = Sae.objects.select_related("lm").filter(sha256=digest).first()
    if known is None:
        return None
    who = {"public_id": known.public_id, "name": known.name, "lm": known.lm.name}
    return {**who, "aside": not ownership.may_lead(row, known)}


def _fit_and_try(held: Held, sae: SparseAutoencoder, report: dict[str, Any]) -> None:
    row = held.row
    if sae.cfg.hook_name is None:
        raise CheckpointError("the files do not say which hook point this SAE reads: give it, and check again")
    if row.lm is None:
        raise CheckpointError(_which_lm(report))
    lm = kept.lm(row.lm.pk, kept.compute_dtype())
    held.pulse.report(0)
    for hook_name, width in ((sae.cfg.hook_name, sae.cfg.d_in), (sae.cfg.hook_name_out, sae.cfg.d_out)):
        if hook_name is not None:
            report["checks"].append(asdict(_hook(lm, row.lm.name, hook_name, width)))
    if any(each["state"] == "fail" for each in report["checks"]):
        raise CheckpointError(next(each["text"] for each in report["checks"] if each["state"] == "fail"))
    report["ready"] = True
    if row.dataset is not None:
        began = time.monotonic()
        report["trial"] = {**asdict(_tried(held, sae, lm)), "seconds": round(time.monotonic() - began, 2)}


def _which_lm(report: dict[str, Any]) -> str:
    """Why no language model was chosen: one has to be added, or said."""
    found = report["detected"]
    called = f", which the files call {found['lm_name']}," if found["lm_name"] else ""
    if not LanguageModel.objects.exists():
        return f"no language model is here yet: add the one that this SAE was trained on{called} and check again"
    if report["fits"]:
        return f"which language model is meant is not sure: choose the one it was trained on{called} and check again"
    return (
        f"no language model here has {found['hook_name']} with a width of {found['d_in']:,}: add the one that this SAE "
        f"was trained on{called} or correct the hook point, and check again"
    )


def _hook(lm: LM, name: str, hook_name: str, width: int) -> Check:
    there = lm.width(hook_name)  # LanguageModelError says which hook points there are
    if there != width:
        text = (
            f"{hook_name} of {name} is {there:,} wide, but the SAE has {width:,}: it belongs to another language model "
            "or hook point"
        )
        return Check("hook point", "fail", text)
    return Check("hook point", "ok", f"{name} has {hook_name}.", f"{there:,} wide")


def _tried(held: Held, sae: SparseAutoencoder, lm: LM) -> Trial:
    dataset = held.row.dataset
    assert dataset is not None
    tokens = _sample(dataset, sae.cfg.d_sae)
    _, special = packing.unpack_vocabulary(bytes(dataset.lm.vocabulary))
    here = sae.to(torch.device(kept.device()))
    return trial(here, lm, tokens, {i for i, s in enumerate(special) if s}, held.pulse.report)


def _sample(dataset: Dataset, d_sae: int) -> npt.NDArray[np.uint32]:
    """Contexts spread over the dataset, [n ctx_len]; of a very wide SAE fewer, at least one."""
    tokens = min(TRIAL_TOKENS, TRIAL_WORK // d_sae)
    wanted = precision.spread(dataset.n_contexts, max(1, tokens // dataset.ctx_len))
    return np.concatenate([store.read_contexts(dataset, c, c + 1) for c in wanted])


def _settle(held: Held, report: dict[str, Any], error: str) -> None:
    """Give the report to the import's owner; one that asked for it is imported where nothing is wrong."""
    row = held.row
    report["lm"], report["dataset"] = row.lm_id, row.dataset_id
    report["options"] = row.options
    fine = not error and _is_fine(report)
    state = State.QUEUED if fine and row.go_on else State.WAITING
    if row.go_on and not fine and not error:
        error = report["trial"]["text"] if report.get("trial") else "the check leaves something open: see the report"
    values = {"lm": row.lm, "dataset": row.dataset, "name": row.name or _name(report)}
    if not held.mine.update(report=report, error=error, state=state, tries=0, heartbeat_at=Now(), **values):
        raise Abandoned
    if state == State.QUEUED:
        queue.send_import(row.pk)


def _is_fine(report: dict[str, Any]) -> bool:
    tried = report.get("trial") or {"state": "ok"}
    return bool(report.get("ready")) and tried["state"] != "fail"


def _name(report: dict[str, Any]) -> str:
    """What to call an SAE that nobody has named: its place and size."""
    found = report.get("detected")
    if not found:
        return ""
    hub_id = (report.get("hub") or {}).get("id", "")
    place = hub_id or " ".join(filter(None, (found["lm_name"], found["hook_name"])))
    return f"{place or found['format_title']} {found['d_sae']}"[:200]
