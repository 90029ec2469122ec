"""Whether an SAE's settings and shapes agree; sentences that say what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from .config import Architecture, SaeConfig

WITH_K = ("topk", "groupmax")
OF_ARCHITECTURE = {
    "jumprelu": ("threshold",),
    "batchtopk": ("threshold",),
    "gated": ("b_gate", "r_mag", "b_mag"),
}


def check(cfg: SaeConfig, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
    """ValueError if the settings contradict each other or a tensor has not the shape they give it; None is missing."""
    _check_config(cfg)
    needed, optional = _expected_shapes(cfg)
    for name in needed:
        if shapes[name] is None:
            raise ValueError(f"{name} is missing; a {cfg.architecture} SAE needs it.")
    if (shapes["W_glu"] is None) != (shapes["b_glu"] is None):
        raise ValueError("W_glu and b_glu come together; one of them is missing.")
    for name, shape in (needed | optional).items():
        found = shapes[name]
        if found is not None and found != shape:
            raise ValueError(f"{name} is {times(found)}; expected {times(shape)}.")


def times(shape: tuple[int, ...]) -> str:
    """A shape as it is written in a sentence."""
    return " × ".join(map(str, shape)) or "a single number"


def _check_config(cfg: SaeConfig) -> None:
    known = get_args(Architecture)
    if cfg.architecture not in known:
        raise ValueError(f"Architecture {cfg.architecture!r} is not one of {', '.join(known)}.")
    if min(cfg.d_in, cfg.d_sae, cfg.d_out) < 1:
        raise ValueError(f"d_in {cfg.d_in}, d_sae {cfg.d_sae} and d_out {cfg.d_out} must all be at least 1.")
    if (cfg.k is not None) != (cfg.architecture in WITH_K):
        raise ValueError(
            f"k is {cfg.k}; a topk SAE needs it, and a {cfg.architecture} SAE has none."
            if cfg.architecture not in WITH_K
            else f"k is missing; a {cfg.architecture} SAE needs it."
        )
    if cfg.k is not None and (isinstance(cfg.k, bool) or not 1 <= cfg.k <= cfg.d_sae):
        raise ValueError(f"k is {cfg.k}; it must be a whole number from 1 to d_sae, {cfg.d_sae}.")
    if cfg.architecture == "groupmax" and cfg.d_sae % (cfg.k or 1):
        raise ValueError(f"{cfg.d_sae} latents cannot be cut into {cfg.k} equal groups.")
    if cfg.subtract_b_dec and cfg.d_in != cfg.d_out:
        raise ValueError(
            f"b_dec has {cfg.d_out} numbers and cannot be subtracted from an input of {cfg.d_in}."
        )
    if cfg.input_norm != "none" and (cfg.hook_name_out is not None or cfg.d_in != cfg.d_out):
        raise ValueError("A transcoder's output cannot be mapped back through its input normalisation.")


def _expected_shapes(cfg: SaeConfig) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """What the architecture needs, and what any may have."""
    encoder, latents = (cfg.d_in, cfg.d_sae), (cfg.d_sae,)
    needed: dict[str, tuple[int, ...]] = {
        "W_enc": encoder, "b_enc": latents, "W_dec": (cfg.d_sae, cfg.d_out), "b_dec": (cfg.d_out,)
    }  # fmt: skip
    needed |= dict.fromkeys(OF_ARCHITECTURE.get(cfg.architecture, ()), latents)
    return needed, {"W_skip": (cfg.d_in, cfg.d_out), "W_glu": encoder, "b_glu": latents}
