"""Folders of the server that staff may add from."""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from sae_backend.additions.errors import AdditionError


def allowed_folder(source: str) -> Path:
    """A file or folder below one of SOURCE_ROOTS, whatever links lead there; AdditionError for any other."""
    roots = [Path(root).resolve() for root in settings.SOURCE_ROOTS]
    path = Path(source).resolve()
    if not roots:
        raise AdditionError("no folder of this server is open for this: whoever runs it names some in SOURCE_ROOTS")
    if not Path(source).is_absolute() or not any(path.is_relative_to(root) for root in roots):
        raise AdditionError(f"give an absolute path below {' or '.join(map(str, roots))}")
    return path
