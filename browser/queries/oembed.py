"""oEmbed (https://oembed.com): from the address of a latent to the frame that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.http import QueryDict
from django.urls import Resolver404, resolve

from browser import card
from browser.citation import EMBED_HEIGHT, EMBED_WIDTH, Citation, frame
from browser.errors import NotFound
from browser.queries.jump import split
from browser.queries.latent_page import View
from browser.queries.saes import called

LEAST_WIDTH, LEAST_HEIGHT = 240, 160  # in which an embed can still be read
CACHED_SECONDS = 86400


@dataclass(frozen=True)
class Asked:
    """A latent, how it is looked at, and the room that there is for it."""

    ref: str
    index: int
    view: View
    width: int
    height: int


def read(query: Mapping[str, str], host: str) -> Asked:
    """What is asked for; NotFound says what an address here looks like."""
    url = query.get("url", "")
    if not url:
        raise BadRequest("No address was given", "Add url=, the address of a latent's page on this site, encoded.")
    parts = split(url)
    if parts is None or parts.scheme not in {"http", "https"} or parts.netloc != host:
        raise NotFound("This address is not of this site", f"Addresses here begin with the host {host}.")
    ref, index = _latent(parts.path)
    room = _size(query, "maxwidth", EMBED_WIDTH, LEAST_WIDTH), _size(query, "maxheight", EMBED_HEIGHT, LEAST_HEIGHT)
    return Asked(ref, index, View.of(QueryDict(parts.query)), *room)


class BadRequest(NotFound):
    kind, status = "bad request", 400


def _latent(path: str) -> tuple[str, int]:
    """The SAE and index of a latent's page, by identity or name."""
    try:
        found = resolve(path)
    except Resolver404:
        found = None
    if found is not None and found.url_name in {"latent_detail", "latent_embed"}:
        return found.kwargs["ref"], found.kwargs["index"]
    if found is not None and "slug" in found.kwargs and (sae := called(found.kwargs["slug"])):
        return _latent(f"/s/{sae.public_id}{found.kwargs.get('rest') or ''}")
    raise NotFound("Only latents can be embedded", "The address of a latent is /s/ID/INDEX, or /s/ID@rN/INDEX.")


def _size(query: Mapping[str, str], name: str, usual: int, least: int) -> int:
    """No more than there is room for, and no less than can be read."""
    text = query.get(name, "")
    return max(least, min(usual, int(text))) if text.isdecimal() and len(text) < 6 else usual


def answer(citation: Citation, asked: Asked, home: str, picture: str) -> dict[str, Any]:
    return {
        "version": "1.0",
        "type": "rich",
        "title": citation.title,
        "provider_name": "latents",
        "provider_url": home,
        "cache_age": CACHED_SECONDS,
        "width": asked.width,
        "height": asked.height,
        "html": frame(citation.embed, citation.title, asked.width, asked.height),
        "thumbnail_url": picture,
        "thumbnail_width": card.WIDTH,
        "thumbnail_height": card.HEIGHT,
    }
