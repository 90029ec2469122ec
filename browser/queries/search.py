"""What words that are no address lead to: SAEs, language models and data sets called so, and latents by a token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.db.models import Q
from django.http import QueryDict
from django.urls import reverse

from browser.errors import Link, TooSlow, sae_link
from browser.queries import latent_filter, latent_list
from browser.queries.latent_list import TOKEN_LISTS, Filter
from browser.queries.latents import vocabulary
from browser.queries.saes import all_saes, close_to
from browser.queries.search_hits import Hit, drawn
from browser.token_search import beginning, named
from browser.tokens import chip
from sae_backend.models import STATUS_NAMES, Dataset, LanguageModel, Sae

PAGE = 25
DEEPEST = 20  # pages; beyond, an SAE's own table goes on
SECONDS = 2.0  # after which no further SAE is looked into
NAMED = 8  # SAEs, models and data sets shown by name
SUGGESTED = 8
LONGEST = 200  # characters of what is looked for
WHERE = {"": "strongest and promoted tokens", "strongest": "strongest tokens", "promoted": "promoted tokens"}


@dataclass(frozen=True)
class Asked:
    """The query string of a search; what makes no sense is left out."""

    words: str = ""
    where: str = ""  # of WHERE
    lm: str = ""
    hook: str = ""
    status: str = ""
    page: int = 1

    @classmethod
    def of(cls, query: QueryDict) -> Asked:
        where, status, page = query.get("in", ""), query.get("status", ""), query.get("page", "")
        number = int(page) if page.isdecimal() and len(page) < 4 else 1
        return cls(
            query.get("q", "").replace("\0", "")[:LONGEST],
            where if where in WHERE else "",
            query.get("model", ""),
            query.get("hook", ""),
            status if status in STATUS_NAMES else "",
            min(max(1, number), DEEPEST),
        )

    def query(self, **changes: Any) -> str:
        """The query string with changes; another choice begins at the first page."""
        a = replace(self, **{"page": 1, **changes})
        given = (("q", a.words), ("in", a.where), ("model", a.lm), ("hook", a.hook), ("status", a.status))
        return "?" + urlencode([(k, v) for k, v in (*given, ("page", a.page if a.page > 1 else "")) if v])

    @property
    def lists(self) -> tuple[str, ...]:
        return (self.where,) if self.where else TOKEN_LISTS

    @property
    def statuses(self) -> list[int]:
        """Dead latents have no strongest token; they are listed by what they would promote only where it is asked."""
        return [STATUS_NAMES.index(self.status)] if self.status else [1, 2, 3]


@dataclass(frozen=True)
class Found:
    """The latents of one SAE that a token leads to."""

    sae: Sae
    ids: tuple[int, ...]  # of the tokens meant, in its model's vocabulary
    indices: list[int]
    counts: list[int]  # by status, whichever are listed

    def number(self, asked: Asked) -> int:
        return sum(self.counts[status] for status in asked.statuses)


@dataclass(frozen=True)
class Facet:
    """One way to narrow the list; choosing the one that is on takes it away."""

    name: str
    number: int
    query: str
    on: bool


@dataclass(frozen=True)
class SearchPage:
    template: ClassVar[str] = "browser/search.html"
    asked: Asked
    named: list[Link]  # SAEs, language models and data sets of that name or hash
    hits: list[Hit]
    number: int  # latents in all
    by_sae: list[tuple[Sae, int, str]]  # each with its number and the query string of its own table
    facets: list[tuple[str, list[Facet]]]
    left_out: int  # SAEs there was no time for
    suggested: list[tuple[str, str]]  # tokens that begin so: their chip and the query that looks for them
    close: list[Link]  # SAEs whose hash begins nearly so
    milliseconds: int

    @property
    def where(self) -> dict[str, str]:
        return WHERE

    @property
    def looked_in(self) -> str:
        return WHERE[self.asked.where]

    @property
    def digits(self) -> str:
        """An index of no SAE in particular."""
        words = self.asked.words.strip().removeprefix("#")
        return words if words.isdecimal() and words.isascii() else ""

    @property
    def first(self) -> int:
        return (self.asked.page - 1) * PAGE + 1

    @property
    def last(self) -> int:
        return self.first + len(self.hits) - 1

    @property
    def next(self) -> str:
        more = self.last < self.number and self.asked.page < DEEPEST
        return self.asked.query(page=self.asked.page + 1) if more else ""

    @property
    def previous(self) -> str:
        return self.asked.query(page=self.asked.page - 1) if self.asked.page > 1 else ""

    @property
    def other(self) -> list[tuple[str, str]]:
        """The same words looked for elsewhere."""
        return [(name, self.asked.query(where=key)) for key, name in WHERE.items() if key != self.asked.where]

    def as_json(self) -> dict[str, Any]:
        return {
            "q": self.asked.words,
            "named": [{"name": n.text, "url": n.url, "what": n.note} for n in self.named],
            "latents": [hit.as_json() for hit in self.hits],
            "number": self.number,
            "saes": [{"id": sae.public_id, "name": sae.name, "latents": n} for sae, n, _ in self.by_sae],
            "left_out": self.left_out,
            "next": reverse("search_json") + self.next if self.next else None,
        }


def page(asked: Asked) -> SearchPage:
    """Everything for the words asked, at most SECONDS of it; latents of all SAEs in turn, each from its strongest."""
    began = time.monotonic()
    words = asked.words.strip()
    computed = _computed()
    found, left_out = _by_token(asked, computed) if words else ([], 0)
    chosen = [f for f in found if asked.lm in ("", f.sae.lm.name) and asked.hook in ("", f.sae.hook_name)]
    places = _in_turn(chosen)[(asked.page - 1) * PAGE : asked.page * PAGE]
    by_name = _called(words) if words else []
    number = sum(f.number(asked) for f in chosen)
    helpful = bool(words) and not number and not by_name
    return SearchPage(
        asked, by_name, drawn(places, asked.lists), number,
        [(f.sae, f.number(asked), _table(asked, f)) for f in chosen if f.number(asked)],
        _facets(asked, found), left_out, _suggested(asked, computed) if helpful else [],
        [sae_link(sae) for sae in close_to(words.lower())] if helpful else [],
        round(1000 * (time.monotonic() - began)),
    )  # fmt: skip


def _computed() -> list[Sae]:
    """Every SAE with pages, without its run's summary, which is long."""
    ready = all_saes().filter(current_run__isnull=False).defer("lm__vocabulary", "current_run__summary")
    return list(ready.order_by("lm__name", "hook_name", "name", "pk"))


def _by_token(asked: Asked, computed: Sequence[Sae]) -> tuple[list[Found], int]:
    """For every SAE the latents that have the token, and how many SAEs there was no time for; one there always is."""
    ids = {sae.lm_id: named(vocabulary(sae.lm), asked.words) for sae in computed}
    within = [sae for sae in computed if ids[sae.lm_id]]
    found: list[Found] = []
    until = time.monotonic() + SECONDS
    for i, sae in enumerate(within):
        if i and time.monotonic() > until:
            break
        with suppress(TooSlow):
            found.append(_in_sae(asked, sae, ids[sae.lm_id]))
    return [f for f in found if any(f.counts)], len(within) - len(found)


def _in_sae(asked: Asked, sae: Sae, ids: tuple[int, ...]) -> Found:
    """From the packed columns, or, for runs that have none, from the table."""
    run, size = sae.current_run_id, asked.page * PAGE + 1
    assert run is not None  # only computed SAEs are asked for
    if hits := latent_filter.with_token(run, asked.lists, ids, asked.statuses, size):
        return Found(sae, ids, hits.indices, hits.counts)
    wanted = Filter(tuple(STATUS_NAMES[s] for s in asked.statuses), token=asked.words, of=asked.where, ids=ids)
    rows, number = latent_list.listed(run, wanted, size)
    counts = [number or 0 if status == asked.statuses[-1] else 0 for status in range(len(STATUS_NAMES))]
    return Found(sae, ids, [row["index"] for row in rows.rows], counts)


def _in_turn(found: Sequence[Found]) -> list[tuple[Sae, tuple[int, ...], int]]:
    """The strongest of every SAE, then the second of every one: activations of two SAEs cannot be compared."""
    columns = ([(f.sae, f.ids, index) for index in f.indices] for f in found)
    return [place for row in zip_longest(*columns) for place in row if place is not None]


def _table(asked: Asked, found: Found) -> str:
    """The SAE's own table with the same token, which can be sorted and filtered further."""
    status = (asked.status,) if asked.status else ()
    return Filter(status, token=asked.words, of=asked.where).query()


def _facets(asked: Asked, found: Sequence[Found]) -> list[tuple[str, list[Facet]]]:
    """Models, hook points and statuses, each counted over what the others leave."""
    lms, hooks, statuses = dict[str, int](), dict[str, int](), [0] * len(STATUS_NAMES)
    for f in found:
        in_lm, in_hook = asked.lm in ("", f.sae.lm.name), asked.hook in ("", f.sae.hook_name)
        lms[f.sae.lm.name] = lms.get(f.sae.lm.name, 0) + in_hook * f.number(asked)
        hooks[f.sae.hook_name] = hooks.get(f.sae.hook_name, 0) + in_lm * f.number(asked)
        statuses = [n + in_lm * in_hook * m for n, m in zip(statuses, f.counts, strict=True)]
    by_status = {name: n for name, n in zip(STATUS_NAMES, statuses, strict=True) if n}
    kinds = (("Language model", "lm", asked.lm, lms), ("Hook point", "hook", asked.hook, hooks))
    rows = [(title, _choices(asked, key, now, counts)) for title, key, now, counts in kinds if len(counts) > 1 or now]
    return [*rows, ("Status", _choices(asked, "status", asked.status, by_status))] if found else []


def _choices(asked: Asked, key: str, now: str, counts: dict[str, int]) -> list[Facet]:
    names = {**counts, **({now: 0} if now and now not in counts else {})}
    return [Facet(name, n, asked.query(**{key: "" if name == now else name}), name == now) for name, n in names.items()]


def _called(words: str) -> list[Link]:
    """SAEs whose name, hook point or identity has the words, then models and data sets called so."""
    parts = Q(slug__icontains=words) | Q(name__icontains=words) | Q(hook_name__icontains=words)
    if 3 <= len(words) <= 64 and not set(words.lower()) - set("0123456789abcdef"):
        parts |= Q(sha256__startswith=words.lower())
    saes = all_saes().filter(parts).order_by("name", "pk")[:NAMED]
    lms = LanguageModel.objects.filter(name__icontains=words).defer("vocabulary").order_by("name")[:NAMED]
    texts = Dataset.objects.filter(name__icontains=words).order_by("name", "pk")[:NAMED]
    return [
        *(Link(s.name, reverse("sae_detail", args=[s.public_id]), f"SAE, {s.lm.name} {s.hook_name}") for s in saes),
        *(Link(lm.name, reverse("lm_detail", args=[lm.pk]), f"language model, {lm.architecture}") for lm in lms),
        *(Link(text.name, reverse("dataset_detail", args=[text.pk]), "data set") for text in texts),
    ]


def _suggested(asked: Asked, computed: Sequence[Sae]) -> list[tuple[str, str]]:
    """Tokens of the models that begin as the words do, or as one of them does: a token is rarely several words."""
    out: dict[str, str] = {}
    for sae in {sae.lm_id: sae for sae in computed}.values():
        entries = vocabulary(sae.lm)
        for word in (asked.words, *asked.words.split()[:5]):
            for id in named(entries, word)[:1] + beginning(entries, word, SUGGESTED):
                text = entries.text(id)
                out.setdefault(str(chip(entries, id)), asked.query(words=f'"{text}"', lm="", hook="", status=""))
    return list(out.items())[:SUGGESTED]
