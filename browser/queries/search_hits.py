"""Latents that a search found, as its page lists them: what they are strongest on and one context of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from django.db import connection
from django.urls import reverse
from django.utils.safestring import SafeString

from browser.contexts import Drawn, around, draw, examples
from browser.queries.latents import vocabulary, windows
from browser.tokens import chip, chips
from sae_backend import packing
from sae_backend.models import STATUS_NAMES, Sae
from sae_backend.packing import TOP

Place = tuple[Sae, tuple[int, ...], int]  # an SAE, the tokens meant in its vocabulary, a latent's index
_ROWS = """
    select l.index, l.status, l.density, l.max_act, l.strongest, l.promoted, p.examples
    from latent l join latent_page p on p.run_id = l.run_id and p.index = l.index
    where l.run_id = %s and p.run_id = %s and l.index = any(%s) and p.index = any(%s)
"""


@dataclass(frozen=True)
class Hit:
    """One latent: `by` says in which of its lists the token stands."""

    sae: Sae
    index: int
    status: str
    density: float | None
    tokens: SafeString
    by: str
    token: SafeString
    said: str  # the token as text
    context: Drawn | None  # its strongest; a dead latent has none

    @property
    def url(self) -> str:
        return reverse("latent_detail", args=[self.sae.public_id, self.index])

    def as_json(self) -> dict[str, Any]:
        return {
            "sae": self.sae.public_id, "index": self.index, "status": self.status, "density": self.density,
            "by": self.by, "token": self.said, "url": self.url,
        }  # fmt: skip


def drawn(places: Sequence[Place], lists: Sequence[str]) -> list[Hit]:
    """The latents in their order, an SAE's fetched together."""
    found: dict[tuple[int, int], Hit] = {}
    for sae in {place[0].pk: place[0] for place in places}.values():
        ids = next(place[1] for place in places if place[0].pk == sae.pk)
        indices = [place[2] for place in places if place[0].pk == sae.pk]
        found |= {(sae.pk, hit.index): hit for hit in _of_sae(sae, ids, indices, lists)}
    return [found[sae.pk, index] for sae, _, index in places if (sae.pk, index) in found]


def _of_sae(sae: Sae, ids: tuple[int, ...], indices: list[int], lists: Sequence[str]) -> list[Hit]:
    run = sae.current_run
    assert run is not None  # only computed SAEs are asked for
    with connection.cursor() as cursor:
        cursor.execute(_ROWS, [run.pk, run.pk, indices, indices])
        rows = cursor.fetchall()
    packed = [packing.unpack_examples(row[-1]) for row in rows]
    first = [np.flatnonzero(e.interval == TOP)[:1].tolist() for e in packed]
    wanted = [int(c) for e, at in zip(packed, first, strict=True) for c in e.context[at]]
    there, words = windows(run, sae.lm.d_vocab, wanted), vocabulary(sae.lm)
    hits = []
    for (index, status, density, top, strongest, promoted, _), e, at in zip(rows, packed, first, strict=True):
        contexts = [draw(words, x, around(x), float(top or 0), False) for x in examples(e, at, there, words)]
        by, token = _why(ids, {"strongest": strongest, "promoted": promoted}, lists)
        hits.append(
            Hit(
                sae, index, STATUS_NAMES[status], density, chips(words, strongest), by, chip(words, token),
                words.text(token), contexts[0] if contexts else None,
            )  # fmt: skip
        )
    return hits


def _why(ids: tuple[int, ...], lists: dict[str, list[int]], asked: Sequence[str]) -> tuple[str, int]:
    """The first list that has one of the tokens, and that token."""
    return next((name, token) for name in asked for token in lists[name] if token in ids)
