"""Whose a thing is: the one rule of who may change it, for pages and for workers that do what somebody asked."""

from __future__ import annotations

from typing import Any

from django.conf import settings

from sae_backend.models import Sae, SaeImport


def is_staff(user: Any) -> bool:
    """Whoever looks after this site, and everyone with OPEN_TO_ALL."""
    return bool(settings.OPEN_TO_ALL or (user and user.is_authenticated and getattr(user, "is_staff", False)))


def owns(user: Any, owner_id: int | None) -> bool:
    """Whoever brought it in, and staff; what came from the shell is staff's alone."""
    return is_staff(user) or bool(user and user.is_authenticated and user.pk == owner_id)


def may_lead(row: SaeImport, sae: Sae) -> bool:
    """Whether the run of an import may take the place of an SAE's pages; the shell may do everything."""
    from_shell = row.owner is None and bool(row.source) and not row.from_hub
    return from_shell or owns(row.owner, sae.owner_id)
