"""Check single settings of a stranger's file: each comes back typed, or a sentence says what is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..config import Plain
from .errors import CheckpointError

HOOK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,199}")
MAX_TEXT = 300
MAX_METADATA = 64


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Return names in a sentence, shortened: they come from strangers' files."""
    shown = [ascii(str(name)[:60])[1:-1] for name in names]
    return ", ".join(shown[:limit]) + (f" and {len(shown) - limit} more" if len(shown) > limit else "")


def whole(value: Any, name: str) -> int:
    """Return a whole number of at least 1; true is no number, though Python says so."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 31:
        raise CheckpointError(f"{name} is {shown(value)}; it must be a whole number of at least 1.")
    return value


def number(value: Any, name: str) -> float:
    """Return a positive number whose inverse is finite in float32."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
        raise CheckpointError(f"{name} is {shown(value)}; it must be a positive number.")
    return float(value)


def flag(value: Any, name: str) -> bool:
    """Return a bool."""
    if not isinstance(value, bool):
        raise CheckpointError(f"{name} is {shown(value)}; it must be true or false.")
    return value


def text(value: Any, name: str) -> str | None:
    """Return printable text of at most MAX_TEXT characters, or None."""
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise CheckpointError(f"{name} is {shown(value)}; it must be text of at most {MAX_TEXT} characters.")
    return value


def hook(value: Any, name: str) -> str | None:
    """Return a hook point's name, or None."""
    spelled = text(value, name)
    if spelled is not None and not HOOK_NAME.fullmatch(spelled):
        raise CheckpointError(
            f"{name} is {shown(value)}, which is no hook point; one reads like blocks.6.hook_resid_post."
        )
    return spelled


def choice(value: Any, name: str, choices: Mapping[Any, str]) -> str:
    """Return what a setting translates to."""
    if not isinstance(value, str | bool | None) or value not in choices:
        raise CheckpointError(f"{name} is {shown(value)}; known are {listed(choices)}.")
    return choices[value]


def plain(settings: Mapping[str, Any]) -> dict[str, Plain]:
    """Return what is small and plain of a mapping, one level of nesting spelled with dots, for the page."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {name: value}
    kept = [(name, value) for name, value in flat.items() if _is_plain(name) and _is_plain(value)]
    return dict(kept[:MAX_METADATA])


def shown(value: Any) -> str:
    """Return a stranger's value as it may stand in a message."""
    if isinstance(value, str | int | float | bool | None):
        return ascii(value if not isinstance(value, str) else value[:60])[:70]
    return f"a {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value.isprintable()
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return isinstance(value, float) and math.isfinite(value)
