"""Counts what may be done only so often, so that guessing is slow. Without Redis nobody is kept out."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from ipaddress import ip_network

from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest
from redis.exceptions import RedisError

SECONDS = 300  # in which things are counted
OF_ONE_NAME = 10  # wrong passwords for one account from one address
OF_ONE_ADDRESS = 100  # wrong passwords, or unknown tokens, from one address
ACCOUNTS = 20  # that one address may ask for


def count(kind: str, *who: str) -> int:
    """Count something; how many there were lately."""
    with suppress(RedisError, ValueError):  # counted away in between
        cache.add(_key(kind, who), 0, SECONDS)
        return cache.incr(_key(kind, who))
    return 0


def counted(kind: str, *who: str) -> int:
    """How many there were lately."""
    with suppress(RedisError):
        return int(cache.get(_key(kind, who), 0))
    return 0


def address(request: HttpRequest) -> str:
    """Where a request comes from: the network, for version 6, whose owners have more addresses than can be counted.

    Behind settings.PROXIES of ours it is what the outermost of them saw; what stands before that is anybody's words.
    """
    hops = request.headers.get("X-Forwarded-For", "").split(",")
    told = hops[-settings.PROXIES].strip() if 0 < settings.PROXIES <= len(hops) else ""
    seen = told or str(request.META.get("REMOTE_ADDR") or "unix")
    with suppress(ValueError):
        return str(ip_network((seen, 64), strict=False)) if ":" in seen else seen
    return seen


def _key(kind: str, who: tuple[str, ...]) -> str:
    """People's words as a digest: they may hold anything, and be of any length."""
    return f"counted:{kind}:{hashlib.sha256(repr(who).encode()).hexdigest()}"
