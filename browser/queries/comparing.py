"""Comparisons of two SAEs in the list of jobs: under way, failed, and done of late."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import F
from django.urls import reverse

from sae_backend import comparisons
from sae_backend.compared import BLOBS
from sae_backend.models import Comparison

LISTED = 50


@dataclass(frozen=True)
class Comparing:
    """A comparison in the list."""

    row: Comparison

    @property
    def changing(self) -> bool:
        return self.row.state in comparisons.OPEN

    @property
    def url(self) -> str:
        return f"{reverse('compare')}?a={self.row.a.public_id}&b={self.row.b.public_id}"

    @property
    def at(self) -> datetime:
        """When it ended, else when it was asked for."""
        return (None if self.changing else self.row.done_at) or self.row.created_at

    def as_json(self) -> dict[str, Any]:
        row = self.row
        fields = ("id", "state", "stage", "unit", "done", "total")
        return {
            **{field: getattr(row, field) for field in fields}, "a": row.a.public_id, "b": row.b.public_id,
            "error": row.error or None, "asked_by": row.owner.get_username() if row.owner else None, "url": self.url,
        }  # fmt: skip


def listing(states: Collection[str]) -> list[Comparing]:
    """Those in these states: under way, the oldest first, then those that are over, the latest first."""
    rows = Comparison.objects.select_related("a", "b", "owner").defer("summary", *BLOBS)
    latest = F("done_at").desc(nulls_first=True)  # what is under way has not ended
    return [Comparing(row) for row in rows.filter(state__in=states).order_by(latest, "pk")[:LISTED]]
