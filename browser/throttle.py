"""Counts what fails, so that guessing is slow. Without Redis nothing is counted and nobody is kept out."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from django.core.cache import cache
from django.http import HttpRequest
from redis.exceptions import RedisError

SECONDS = 300  # in which failures are counted
OF_ONE_NAME = 10  # wrong passwords for one account from one address
OF_ONE_ADDRESS = 100  # wrong passwords, or unknown tokens, from one address


def failed(kind: str, *who: str) -> int:
    """Count a failure; how many there were lately."""
    with suppress(RedisError, ValueError):  # counted away in between
        cache.add(_key(kind, who), 0, SECONDS)
        return cache.incr(_key(kind, who))
    return 0


def failures(kind: str, *who: str) -> int:
    """How many failures there were lately."""
    with suppress(RedisError):
        return int(cache.get(_key(kind, who), 0))
    return 0


def address(request: HttpRequest) -> str:
    """Where a request comes from; behind a proxy that is the proxy, for what it says could be anybody's words."""
    return str(request.META.get("REMOTE_ADDR") or "unix")


def _key(kind: str, who: tuple[str, ...]) -> str:
    """People's words as a digest: they may hold anything, and be of any length."""
    return f"failures:{kind}:{hashlib.sha256(repr(who).encode()).hexdigest()}"
