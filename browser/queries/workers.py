"""Workers as people see them: which there are, what each is at, and its last sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.urls import reverse
from django.utils import timezone

from sae_backend.models import SaeImport, Worker
from sae_backend.presence import FORGOTTEN

OF_RUNS = {"compute_contexts": "contexts", "load_latents": "latents", "publish_run": "publication"}
OF_IMPORTS = {"check_import": "checks an upload", "import_sae": "stores an SAE"}
OTHERS = {
    "add_source": "adds a model or text", "clean": "tidies up", "compare_saes": "compares SAEs",
    "run_prompt": "runs a prompt",
}  # fmt: skip


@dataclass(frozen=True)
class WorkerLine:
    """A worker; `url` leads to what it is at."""

    worker: Worker
    alive: bool
    doing: str = ""
    url: str = ""

    @property
    def status(self) -> tuple[str, str]:
        """The status's kind and its words."""
        if not self.alive:
            return "failed", "No sign"
        return ("running", "At work") if self.doing else ("done", "Idle")

    def as_json(self) -> dict[str, Any]:
        row = self.worker
        times = {name: getattr(row, name).isoformat() for name in ("started_at", "seen_at")}
        known = {"name": row.name, "queues": row.queues.split(","), "alive": self.alive, "memory": row.memory}
        return {**known, "task": row.task or None, "url": self.url or None, **times}


def listing() -> list[WorkerLine]:
    """Those that gave a sign within a day, by name."""
    now = timezone.now()
    rows = list(Worker.objects.filter(seen_at__gt=now - FORGOTTEN).order_by("name"))
    keys = _keys(rows)
    silent = now - timedelta(seconds=settings.STALLED_SECONDS)
    return [_line(row, row.seen_at > silent, keys) for row in rows]


def _line(row: Worker, alive: bool, keys: dict[int, Any]) -> WorkerLine:
    if row.task in OF_RUNS and row.target:
        url = reverse("run_detail", args=[row.target])
        return WorkerLine(row, alive, f"job {row.target}, {OF_RUNS[row.task]}", url)
    if row.task in OF_IMPORTS:
        key = keys.get(row.target or 0)
        return WorkerLine(row, alive, OF_IMPORTS[row.task], reverse("import_detail", args=[key]) if key else "")
    return WorkerLine(row, alive, OTHERS.get(row.task, row.task))


def _keys(rows: Sequence[Worker]) -> dict[int, Any]:
    """Addresses of the imports that workers are at."""
    wanted = [row.target for row in rows if row.task in OF_IMPORTS and row.target]
    return dict(SaeImport.objects.filter(pk__in=wanted).values_list("pk", "key")) if wanted else {}
