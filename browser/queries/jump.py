"""What the jump box's words mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urlencode, urlsplit

from django.db.models import Q
from django.urls import Resolver404, resolve, reverse

from browser.errors import NotFound, sae_link
from browser.queries.saes import all_saes, find
from sae_backend.models import DeletedSae, Sae

REF = re.compile(r"(?:sae:|/?s/)?(?P<ref>[0-9a-f]{6,64}(?:@r\d{1,9})?)(?:[/ ](?P<index>\d{1,9}))?/?", re.I)
NAMED = re.compile(r"(?P<name>.*?[^\s/])(?:[/ ]+(?P<index>\d[\d\s,_]*))?/*")
LONGEST_INDEX = 18  # digits
LONGEST = 300  # characters of a name and an index: a long row of signs would be matched for minutes


def meaning(words: str, here: str, host: str) -> str:
    """The address that words mean on a page of the SAE `here` ("" elsewhere); else that of a search for them."""
    words = words.replace("\0", "").strip()
    if url := _own_url(words, host):
        return url
    if len(words) > LONGEST:
        return _search(words[:LONGEST])
    if index := re.fullmatch(r"#?([\d\s,_]+)", words):
        return _latent_here(re.sub(r"\D", "", index[1]), here) or _search(words)
    if named := _named(words):
        return named
    known = REF.fullmatch(words)
    return _address(known["ref"].lower(), known["index"]) if known and _is_hash(known) else _search(words)


def _is_hash(known: re.Match[str]) -> bool:
    """Letters alone may be a word, such as decade: a hash only where an SAE, here or deleted, begins so."""
    ref = known["ref"].lower()
    if not ref.isalpha() or known["index"]:
        return True
    return any(of.objects.filter(sha256__startswith=ref).exists() for of in (Sae, DeletedSae))


def _search(words: str) -> str:
    return f"{reverse('search')}?{urlencode({'q': words})}" if words else reverse("search")


def split(words: str) -> SplitResult | None:
    """The parts of an address; None for what is none."""
    try:
        return urlsplit(words) if words.isprintable() else None
    except ValueError:  # an open bracket, say
        return None


def _own_url(words: str, host: str) -> str | None:
    parts = split(words)
    if parts is None or parts.scheme not in {"http", "https"} or parts.netloc != host:
        return None
    try:
        resolve(parts.path)
    except Resolver404:
        return None
    return parts._replace(scheme="", netloc="").geturl()


def _latent_here(digits: str, here: str) -> str | None:
    """The latent of that index on the page's own SAE; elsewhere it may be any SAE's."""
    if not digits or len(digits) > LONGEST_INDEX or not re.fullmatch(r"[0-9a-f]{6,64}(@r\d{1,9})?", here):
        return None
    return _address(here, digits)


def _address(ref: str, index: str | None) -> str:
    return reverse("latent_detail", args=[ref, int(index)]) if index else reverse("sae_detail", args=[ref])


def sae_called(words: str) -> Sae:
    """The only SAE of this id or name, whole or in part; NotFound names those that it may be."""
    known = REF.fullmatch(words)
    if saes := _matching(words):
        if len(saes) == 1:
            return saes[0]
        raise _several(words, saes)
    if known and not known["index"]:
        return find(known["ref"].lower().partition("@")[0])
    raise _nothing(words)


def _named(words: str) -> str | None:
    """An SAE's name or slug, whole or the only one that contains the words; a latent's index may follow."""
    found = NAMED.fullmatch(words)
    for name, index in ((words, None), (found["name"], found["index"])) if found else ():
        saes = _matching(name)
        if len(saes) == 1:
            return _address(saes[0].public_id, re.sub(r"\D", "", index or "") or None)
    return None


def _several(name: str, saes: Sequence[Sae]) -> NotFound:
    names = ", ".join(sae.name for sae in saes)
    return NotFound(f"“{name}” is in the name of several SAEs", f"Choose one: {names}.", [sae_link(s) for s in saes])


def _matching(name: str) -> list[Sae]:
    saes = all_saes().order_by("pk")
    exact = list(saes.filter(Q(slug__iexact=name) | Q(name__iexact=name))[:10])
    return exact or list(saes.filter(Q(slug__icontains=name) | Q(name__icontains=name))[:10])


def _nothing(words: str) -> NotFound:
    sentence = "It reads a latent's index, an SAE's id or name, both as id/17342, or an address of this site."
    return NotFound(f"Nothing here is called “{words[:80]}”" if words else "Nothing was asked for", sentence)
