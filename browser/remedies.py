"""What the reason of a failure leads to: the places of this site where it can be mended, most helpful first."""

from __future__ import annotations

import re
from collections.abc import Iterator

from django.urls import reverse

from browser.errors import Link
from sae_backend.models import Run, SaeImport

MEMORY = re.compile(r"memory")
SPACE = re.compile(r"free space|no room|disk")
WRONGLY = re.compile(r"read wrongly|hook point|d_in")
NO_LM = re.compile(r"no language model (here|is here)")
NO_TEXT = re.compile(r"data ?set")


def of_run(run: Run, brought: SaeImport | None, may_change: bool) -> list[Link]:
    """For a run that failed; `brought` is the import that asked for it. The SAE's settings are not for everybody."""
    return list(_of_run(run, brought, may_change))


def _of_run(run: Run, brought: SaeImport | None, may_change: bool) -> Iterator[Link]:
    if WRONGLY.search(run.error):
        yield Link("import it again, read otherwise", reverse("upload"))
    if may_change:
        yield from _in_settings(run)
    if brought is not None:
        yield Link("see how it was read", reverse("import_detail", args=[brought.key]) + "?look")


def _in_settings(run: Run) -> Iterator[Link]:
    settings = reverse("sae_settings", args=[run.sae.public_id])
    if SPACE.search(run.error) and not WRONGLY.search(run.error):
        yield Link("drop runs that are not needed", f"{settings}#runs")
    otherwise = "compute fewer tokens, or in bfloat16" if MEMORY.search(run.error) else "compute it otherwise"
    yield Link(otherwise, f"{settings}#rerun")


def of_import(row: SaeImport) -> list[Link]:
    """For an import whose check or import left a sentence."""
    if NO_LM.search(row.error):
        return [Link("add the language model", reverse("lm_list") + "#add")]
    if "hook point" in row.error:
        return [Link("correct the hook point", "#u-hook_name")]
    if NO_TEXT.search(row.error):
        return [Link("add text for it", reverse("dataset_list") + "#add")]
    return []
