"""Who may do what; every page and its JSON ask here."""

from __future__ import annotations

from typing import Protocol

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser
from django.contrib.auth.models import AnonymousUser

from sae_backend import ownership
from sae_backend.models import Run

Anyone = AbstractBaseUser | AnonymousUser


class Owned(Protocol):
    """An SAE, an import, a run, a language model, a dataset, a comparison."""

    @property
    def owner_id(self) -> int | None: ...


def is_member(user: Anyone) -> bool:
    """Whoever is logged in or came with a token, and everyone with OPEN_TO_ALL."""
    return bool(settings.OPEN_TO_ALL or user.is_authenticated)


def is_staff(user: Anyone) -> bool:
    """Whoever looks after this site, and everyone with OPEN_TO_ALL."""
    return ownership.is_staff(user)


def may_upload(user: Anyone) -> bool:
    """Whether this user may bring in SAEs and have their pages computed."""
    return is_member(user)


def may_add_sources(user: Anyone) -> bool:
    """Whether this user may add language models and datasets, from the hub or by uploading text."""
    return is_member(user)


def may_read_folders(user: Anyone) -> bool:
    """Whether this user may name a folder of the server's to add what is in it."""
    return is_staff(user)


def may_compare(user: Anyone) -> bool:
    """Whether this user may have two SAEs compared; stopping it is for who asked (`may_change`)."""
    return is_member(user)


def may_steer(user: Anyone, run: Run) -> bool:
    """Whether this user may cancel and resume this run: who asked for it, who brought in its SAE, and staff."""
    return may_change(user, run) or may_change(user, run.sae)


def may_change(user: Anyone, what: Owned) -> bool:
    """Whether this user may correct, rename, stop or delete it: who brought it in, and staff; from the shell, staff."""
    return ownership.owns(user, what.owner_id)
