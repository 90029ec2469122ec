"""What a request says in its body: the fields of a form, or of a JSON object, of nothing but what can be stored."""

from __future__ import annotations

import json
import math
from typing import Any

from django.http import HttpRequest


def fields(request: HttpRequest) -> dict[str, Any]:
    """The fields by name; ValueError says in a sentence what is wrong with them."""
    try:
        said = json.loads(request.body or b"{}") if request.content_type == "application/json" else request.POST.dict()
        wrong = [name for name, value in said.items() if not (_is_kept(name) and _is_kept(value))]
    except (AttributeError, RecursionError, ValueError):
        raise ValueError("the body is not a JSON object of fields") from None
    if wrong:
        raise ValueError(f"{wrong[0][:40]!r} holds what cannot be stored: a NUL, half a character, or no number")
    return said


def _is_kept(value: Any) -> bool:
    """Whether PostgreSQL takes it, as text and as JSON."""
    if isinstance(value, dict):
        return all(_is_kept(name) and _is_kept(inner) for name, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_kept, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not isinstance(value, str) or not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
