"""Torch-free records of what is known about a checkpoint: found in its files, said by a person, or still open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .config import Plain

Kind = Literal["text", "hook", "whole", "number", "choice", "yes_no"]


@dataclass(frozen=True)
class Option:
    """One correction that `checkpoints.load` and `checkpoints.detect` take; forms are made from these."""

    kind: Kind
    title: str
    text: str
    #: What it does, in a sentence.
    choices: tuple[tuple[str, str], ...] = ()
    #: (value, title), of a choice.


@dataclass(frozen=True)
class Question:
    """What no file can resolve; its answer is the option of that name."""

    field: str
    #: A key of OPTIONS.
    text: str
    #: A sentence that says what is open and how to find out.
    required: bool = True
    #: Importing is refused without an answer; otherwise `default` is taken.
    default: Plain = None
    choices: tuple[tuple[str, str], ...] = ()
    #: (value, title), where the answer is one of a few.


@dataclass(frozen=True)
class Detected:
    """A checkpoint as its keys, shapes and settings describe it; nothing has been computed yet."""

    format: str
    format_title: str
    architecture: str
    #: As it is computed here: a key of ARCHITECTURES.
    d_in: int
    d_out: int
    d_sae: int
    #: Latents as they get pages; twice those of the file where activations have two signs.
    k: int | None
    dtype: str
    #: Of the stored encoder, such as bfloat16.
    hook_name: str | None
    hook_name_out: str | None
    lm_name: str | None
    #: What the files call the language model.
    context_size: int | None
    normalisation: str
    #: none, layer_norm, constant_norm or centred.
    input_scale: float
    file: str
    #: The file of weights, relative to what was given.
    questions: list[Question] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Warnings in sentences.


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    #: What was found, in a sentence.
    figure: str = ""
    #: The same as one number with its unit, where there is one.


ARCHITECTURES: dict[str, str] = {
    "standard": "ReLU",
    "topk": "TopK: the k largest of each token",
    "groupmax": "GroupMax: the largest of each of k groups",
    "jumprelu": "JumpReLU: above the latent's threshold",
    "batchtopk": "BatchTopK: above one threshold for all latents",
    "gated": "Gated",
    "tanh_relu": "tanh of ReLU",
}

FORMATS: dict[str, str] = {
    "saelens": "SAELens",
    "openai": "OpenAI sparse_autoencoder",
    "sparsify": "EleutherAI sparsify",
    "dictionary_learning": "dictionary_learning",
    "gemma_scope": "Gemma Scope",
    "gemma_scope_2": "Gemma Scope 2",
    "llama_scope": "Llama Scope",
    "lm_saes": "lm-saes (llamascopium)",
    "goodfire": "Goodfire",
    "qwen_scope": "Qwen Scope",
    "matrices": "a state dict of W_enc, W_dec, b_enc and b_dec",
    "circuit_tracer": "circuit-tracer transcoder",
    "transcoder_circuits": "transcoder_circuits",
}
"""What the module of each format is called, and its title."""

OPTIONS: dict[str, Option] = {
    "hook_name": Option("hook", "Hook point", "Where the SAE reads, as TransformerLens spells it."),
    "hook_name_out": Option("hook", "Hook point of the output", "Where a transcoder writes; makes it a transcoder."),
    "model_name": Option("text", "Language model", "What the language model is called; nothing is computed from it."),
    "k": Option("whole", "k", "Latents kept per token, for TopK."),
    "architecture": Option(
        "choice",
        "Activation function",
        "How the latents that fire are chosen, where the file leaves it open or says it wrongly.",
        tuple(ARCHITECTURES.items()),
    ),
    "input_norm": Option(
        "choice",
        "Input normalisation",
        "What is done to each token's vector before the encoder, and undone after the decoder.",
        (
            ("none", "none"),
            ("layer_norm", "layer norm: mean 0, standard deviation 1"),
            ("constant_norm", "norm √d"),
            ("centred", "mean 0, as TransformerLens centres GPT-2"),
        ),
    ),
    "input_scale": Option("number", "Input scale", "A constant factor on the input; its inverse on the output."),
    "subtract_b_dec": Option("yes_no", "Subtract b_dec", "Whether the decoder's bias is subtracted from the input."),
    "transcoder": Option("yes_no", "Transcoder", "Whether it writes to another hook point than it reads."),
    "turned": Option(
        "yes_no", "Turn square matrices", "Take W_enc and W_dec, where they are square, the other way round."
    ),
    "format": Option("choice", "Format", "Read the files as this format, whatever they look like.", ()),
    "file": Option("text", "File", "Which file of weights to read, where there are several."),
}


def choices_of(name: str) -> tuple[tuple[str, str], ...]:
    """The values an option may have, with titles; none where it is free."""
    return tuple(FORMATS.items()) if name == "format" else OPTIONS[name].choices


def as_json(detected: Detected) -> dict[str, Any]:
    """Plain dicts and lists, as a JSON column keeps them."""
    from dataclasses import asdict

    return asdict(detected)
