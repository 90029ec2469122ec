"""The names of SAEs as addresses have them: one leads to the same SAE for ever, also once that is called otherwise."""

from __future__ import annotations

import re

from django.db.models import Q
from django.utils.text import slugify

from sae_backend.models import DeletedSae, FormerSlug, Sae

LIKE_AN_IDENTITY = re.compile(r"[0-9a-f]{6,64}")  # what addresses take for the beginning of a hash
LONGEST = 190


def free(name: str, sha256: str) -> str:
    """A slug for a name that leads to no SAE but, perhaps, this one; call it where no other is taken meanwhile."""
    base = slugify(name)[:LONGEST] or "sae"
    base = f"sae-{base}" if LIKE_AN_IDENTITY.fullmatch(base) else base
    slug, n = base, 1
    while _is_anothers(slug, sha256):
        n += 1
        slug = f"{base}-{n}"
    return slug


def distinct(name: str) -> str:
    """A name that no SAE here has, so that lists tell two of one origin and size apart; in the same section."""
    given, n = name, 1
    while Sae.objects.filter(name=given).exists():
        n += 1
        given = f"{name[:LONGEST]} ({n})"
    return given


def _is_anothers(slug: str, sha256: str) -> bool:
    others = ~Q(sha256=sha256)
    return (
        Sae.objects.filter(others, slug=slug).exists()
        or FormerSlug.objects.filter(~Q(sae__sha256=sha256), slug=slug).exists()
        or DeletedSae.objects.filter(others, slugs__contains=[slug]).exists()
    )
