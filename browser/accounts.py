"""API tokens: made, looked up and revoked. A key is random enough that its plain SHA-256 cannot be guessed back."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from django.contrib.auth.models import User
from django.db.models import Q
from django.db.models.functions import Now

from browser.models import ApiToken

PREFIX = "lat_"
NOTED_EVERY = timedelta(minutes=1)  # a program that asks often does not write every time


def new_token(user: User, name: str) -> tuple[ApiToken, str]:
    """A token's row, and its key, which is nowhere else."""
    key = PREFIX + secrets.token_urlsafe(32)
    row = ApiToken.objects.create(user=user, name=name, sha256=_digest(key), beginning=key[:8])
    return row, key


def user_of(key: str) -> User | None:
    """Whose key this is, once it is noted that it was used; None for one that is unknown or of a closed account."""
    row = ApiToken.objects.select_related("user").filter(sha256=_digest(key), user__is_active=True).first()
    if row is None:
        return None
    unnoted = Q(last_used_at=None) | Q(last_used_at__lt=Now() - NOTED_EVERY)
    ApiToken.objects.filter(unnoted, pk=row.pk).update(last_used_at=Now())
    return row.user


def revoke(user: User, pk: int) -> bool:
    """Delete a token of this user's; False when there is no such one."""
    return bool(ApiToken.objects.filter(user=user, pk=pk).delete()[0])


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
