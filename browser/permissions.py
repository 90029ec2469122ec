"""Who may do what; every page and its JSON ask here."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser

from sae_backend.models import Run


def may_steer(user: AbstractBaseUser | AnonymousUser, run: Run) -> bool:
    """Whether this user may cancel and resume this run: whoever is logged in, and everyone with OPEN_TO_ALL."""
    return bool(settings.OPEN_TO_ALL or user.is_authenticated)
