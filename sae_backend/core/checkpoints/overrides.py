"""What a person says about a checkpoint: each wins over what the files say, None says nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..detected import OPTIONS, choices_of
from . import settings
from .errors import CheckpointError


@dataclass(frozen=True)
class Overrides:
    """The options of `detected.OPTIONS`, checked."""

    hook_name: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None
    k: int | None = None
    architecture: str | None = None
    input_norm: str | None = None
    input_scale: float | None = None
    subtract_b_dec: bool | None = None
    transcoder: bool | None = None
    turned: bool | None = None
    format: str | None = None
    file: str | None = None


READ: dict[str, Callable[[Any, str], Any]] = {
    "text": settings.text,
    "hook": settings.hook,
    "whole": settings.whole,
    "number": settings.number,
    "yes_no": settings.flag,
}


def overrides(options: Mapping[str, Any]) -> Overrides:
    """Return options as given by a form, a command or JSON, checked; CheckpointError names what is wrong."""
    if unknown := options.keys() - OPTIONS.keys():
        raise CheckpointError(
            f"There is no option {settings.listed(sorted(unknown))}; known are {settings.listed(OPTIONS)}."
        )
    return Overrides(**{name: _read(name, value) for name, value in options.items() if value is not None})


def _read(name: str, value: Any) -> Any:
    if OPTIONS[name].kind == "choice":
        return settings.choice(value, name, {each: each for each, _ in choices_of(name)})
    return READ[OPTIONS[name].kind](value, name)
