"""Checkpoints of the Hugging Face hub, by an id such as namespace/name@revision:subfolder; workers download them.

The hub is asked without the server's own token: a stranger must not read what only the site's owner may.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import transaction

from sae_backend import storage
from sae_backend.core import hub
from sae_backend.intake import limits
from sae_backend.intake.errors import IntakeError, Malformed, TooLarge, explained
from sae_backend.intake.names import cleaned, collides
from sae_backend.intake.receiving import MAX_FILES, folder, keep_file
from sae_backend.intake.sources import unpacked
from sae_backend.models import SaeImport

HUB_ID = re.compile(
    rf"(?P<repo>{hub.PART}/{hub.PART})(?:@(?P<revision>{hub.REVISION}))?(?::(?P<subfolder>[^:\\\x00]{{1,400}}))?",
    re.ASCII,
)
WANTED = (".safetensors", ".pt", ".pth", ".npz", ".bin", ".ckpt", ".json", ".yaml", ".yml")
ONE_SAE = "name the folder of one SAE after a colon"


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, at a revision, and the folder of it that holds the SAE."""

    repo: str
    revision: str = ""
    subfolder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return self.repo + revision + (f":{self.subfolder}" if self.subfolder else "")


def parsed(text: str) -> HubId:
    """The id in a person's words, the address of a page on the hub included."""
    plain = re.sub(r"^https?://[^/]+/", "", text.strip())
    if tree := re.fullmatch(r"([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", plain):
        plain = f"{tree[1]}@{tree[2]}" + (f":{tree[3]}" if tree[3] else "")
    found = HUB_ID.fullmatch(plain)
    subfolder = (found["subfolder"] or "").strip("/") if found else ""
    if found is None or any(part in ("", ".", "..") for part in subfolder.split("/") if subfolder):
        raise Malformed(
            f"{text[:80]!r} is no id of the hub; it looks like namespace/name, namespace/name@revision or "
            "namespace/name@revision:folder"
        )
    return HubId(found["repo"], found["revision"] or "", subfolder)


def bring(row: SaeImport, report: Callable[[int], None]) -> dict[str, Any]:
    """Store the files of an import's hub id as if they had been sent; what came from where.

    `report` is called again and again; what it raises ends the download.
    """
    wanted = parsed(row.source)
    there = _look(wanted)
    names = _names(there, wanted)
    with explained():
        into = _make_room(row, there.size)
        for path, name in names.items():
            limits.check_room(into, there.files[path])
            here = hub.fetch(there, path, report, into)
            report(0)
            keep_file(row, name, here)
            here.unlink()
    return {"id": str(wanted), "commit": there.commit, "bytes": there.size}


def _look(wanted: HubId) -> hub.Repository:
    """What there is to download; IntakeError or HubError where it may not be had."""
    silence = settings.HUB_SILENCE_SECONDS
    there = hub.look("repository", wanted.repo, wanted.revision, wanted.subfolder, token=False, silence=silence)
    there = replace(there, files={path: n for path, n in there.files.items() if path.lower().endswith(WANTED)})
    if not there.files:
        raise IntakeError(f"{wanted} has no weights: name the folder that holds the SAE after a colon")
    if len(there.files) > MAX_FILES:
        raise TooLarge(f"{wanted} has {len(there.files):,} files: {ONE_SAE}")
    if there.size > settings.UPLOAD_MAX_BYTES:
        allowed = limits.in_words(settings.UPLOAD_MAX_BYTES)
        raise TooLarge(f"{wanted} has {limits.in_words(there.size)}; {allowed} are allowed here: {ONE_SAE}")
    return there


def _names(there: hub.Repository, wanted: HubId) -> dict[str, str]:
    """What each file is called here: its path, cut where it is too deep or long, and never so that two are the same."""
    names: dict[str, str] = {}
    for path in sorted(there.files):
        name = cleaned(path)
        if other := collides(name, list(names.values())):
            raise IntakeError(f"{path} of {wanted} would be called {other} here, as another of its files is: {ONE_SAE}")
        names[path] = name
    return names


def _make_room(row: SaeImport, size: int) -> Path:
    """A folder to download into. What an attempt that was cut off has stored is forgotten, what is to come counted."""
    row.files.all().delete()
    storage.current().remove(folder(row))
    into = unpacked(row.pk) / "hub"
    into.mkdir(parents=True, exist_ok=True)
    with transaction.atomic():
        limits.one_by_one(row.owner)
        limits.check_adding(row, size)
    limits.check_room(into, size)
    return into
