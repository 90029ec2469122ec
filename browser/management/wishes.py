"""What commands that change SAEs share: which SAE and run are meant, and refusals as the shell has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.core.management.base import CommandError

from browser.errors import NotFound
from browser.queries import jump, sae_settings
from sae_backend.managing import ManagingError
from sae_backend.models import Run, Sae
from sae_backend.store import StoreError


@contextmanager
def granted() -> Iterator[None]:
    """Turn what cannot be done into the sentence that says why."""
    try:
        yield
    except NotFound as error:
        raise CommandError(f"{error.heading}. {error.sentence}") from error
    except (ManagingError, StoreError) as error:
        raise CommandError(str(error)) from error


def sae_called(words: str) -> Sae:
    with granted():
        return jump.sae_called(words)


def run_called(words: str, number: str) -> Run:
    digits = number.removeprefix("r")
    if not digits.isdecimal() or len(digits) > 9:
        raise CommandError(f"{number} is no number of a run: give 3 or r3")
    return sae_settings.run_of(sae_called(words), int(digits))
