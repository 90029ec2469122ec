"""Torch-free records of what a person or a file has decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Architecture = Literal["standard", "tanh_relu", "topk", "jumprelu", "batchtopk", "gated", "groupmax"]
InputNorm = Literal["none", "layer_norm", "constant_norm", "centred"]
SHARD_TOKENS, SHARD_LATENTS = (65_536, 131_072), 4096  # seconds of work, …
SHARD_WORK = 2**33  # … or tokens · latents of a shard of contexts, where that lies between
MOST_FILES = 1024  # of activations in a run, about: every piece of latents looks into each
SAMPLE_TOKENS = 65_536  # positions at most that are looked at more closely …
SAMPLE_PRE_ACTS = (4_096, 2**29)  # … and of pre-activations so many, or those of so many tokens where that is more
Plain = str | int | float | bool | None


def shard_tokens(d_sae: int) -> int:
    """Tokens of a shard of contexts: the wider the SAE, the fewer."""
    least, most = SHARD_TOKENS
    return max(least, min(most, SHARD_WORK // d_sae))


def every(n_contexts: int, ctx_len: int, least: int, most: int = SAMPLE_TOKENS) -> int:
    """n of a sample of every n-th context of a run by its number, the first included: `least`, or more for at most
    so many tokens. No cut of a run into work changes it."""
    return max(least, -(-n_contexts * ctx_len // most))


def watched_tokens(d_sae: int) -> int:
    """Tokens at most whose every pre-activation is looked at: the wider the SAE, the fewer."""
    tokens, pre_acts = SAMPLE_PRE_ACTS
    return min(SAMPLE_TOKENS, max(tokens, pre_acts // d_sae))


@dataclass(frozen=True)
class SaeConfig:
    """Everything about an SAE but its weights; `sae_backend.core.sae` has the equations."""

    architecture: Architecture
    #: batchtopk is the inference form: one threshold for all latents and tokens.
    d_in: int
    d_sae: int
    d_out: int
    #: Differs from d_in only in transcoders.
    hook_name: str | None = None
    #: TransformerLens spelling; None when the file does not say.
    hook_name_out: str | None = None
    #: The hook point a transcoder writes to; None for an SAE.
    model_name: str | None = None
    k: int | None = None
    #: Latents kept per token, or groups of which one is kept; set for topk and groupmax and for nothing else.
    input_norm: InputNorm = "none"
    #: layer_norm: (x - mean)/(std + 1e-5), n-1 in std; constant_norm: x * sqrt(d_in)/|x|;
    #: centred: x - mean. Undone by decode.
    input_scale: float = 1.0
    #: Constant factor on x, after input_norm and before b_dec is subtracted.
    output_scale: float = 1.0
    #: Constant factor on acts @ W_dec + b_dec; 1 / input_scale in an SAE.
    subtract_b_dec: bool = False
    #: The encoder reads x - b_dec.
    rank_by_decoder_norm: bool = False
    #: topk compares pre_acts * |W_dec row| and keeps pre_acts.
    format: str = "saelens"
    #: Which adapter of `checkpoints` read the file.
    metadata: Mapping[str, Plain] = field(default_factory=dict, hash=False)
    #: Small plain values for the page; nothing is computed from them.


@dataclass(frozen=True)
class RunConfig:
    """What a run computes. Two runs with equal fields, SAE and dataset give the same pages."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Of the language model and the encoder's matmul; selection is on its results, statistics are float64.
    batch_contexts: int = 16
    #: Contexts in one forward; changes speed, never results.
    shard_contexts: int = 0
    #: Contexts of one claimable piece of work; 0 takes shard_tokens(d_sae), or more where that makes MOST_FILES.
    shard_latents: int = 0
    #: Latents of one claimable piece of work; 0 takes SHARD_LATENTS.
    count_special: bool = False
    #: Whether BOS, separators and padding are counted tokens.
    seed: int = 0
    #: Of the uniform draws.
    top: int = 20
    #: Top contexts kept for each latent.
    per_interval: int = 5
    #: Uniform draws from each of the 10 intervals.
    random: int = 10
    #: Uniform draws from all firings.
    duplicate_reach: int = 8
    #: Windows whose tokens within this many places of the peak are equal count as one top context.
    fidelity_every: int = 8
    #: One context in so many, or fewer, is decoded for MSE and FVU, and a quarter of those for basis kurtosis.
    ce_contexts: int = 32
    #: Contexts, evenly spaced, on which the three cross-entropies are measured.
    k_contexts: int = 16
    #: Contexts, evenly spaced, that are reconstructed with other k than the SAE's own.
    sample_every: int = 16
    #: One context in so many, or fewer, is looked at for what fires together, and a quarter of those for margins.
    max_l0: int = 4096
    #: A mean number of active latents per token beyond this stops the run: the checkpoint is read wrongly.
