"""From a format's tensors and facts to a SparseAutoencoder: orientation, a float32 copy, every check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from .. import validity
from ..config import Architecture, InputNorm, Plain, SaeConfig
from ..detected import FORMATS, Detected, Question, choices_of
from ..sae import TENSORS, SparseAutoencoder
from ..validity import WITH_K
from . import settings
from .errors import CheckpointError
from .files import Source
from .reading import FLOATS
from .settings import listed

K = "The files do not say k: give the number of latents kept per token."
MATRICES = {"W_enc", "W_glu", "W_dec"}
WITH_THRESHOLD = ("jumprelu", "batchtopk")
CONTEXT_SIZES = ("context_size", "ctx_len", "seq_len")


@dataclass
class Draft:
    """What a format found, its tensors under this project's names and, where square, its way round."""

    format: str
    architecture: Architecture
    tensors: dict[str, Tensor]
    #: W_enc, b_enc, W_dec, b_dec and what else the architecture has; not copied, any float dtype.
    hook_name: str | None = None
    hook_name_out: str | None = None
    model_name: str | None = None
    k: int | None = None
    input_norm: InputNorm = "none"
    input_scale: float = 1.0
    output_scale: float | None = None
    #: None is 1 / input_scale, as in an SAE.
    subtract_b_dec: bool = False
    rank_by_decoder_norm: bool = False
    metadata: dict[str, Plain] = field(default_factory=dict)
    since_fired: Any = None
    #: What the file has under the name of such a counter.
    transcoder: bool = False
    #: It reads and writes at different hook points, named or not.
    two_sided: bool = False
    #: Its activations may be negative: each latent becomes two, of its positive and its negative side.
    folds: list[Callable[[Draft], None]] = field(default_factory=list)
    #: Rewrite the weights, with equal results; called in this order once they are needed.
    questions: list[Question] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def take_k(self, k: Any, source: Source, question: str = K) -> None:
        """Set k to what the person says, or the files; where neither does, ask."""
        if source.said.k is not None or k is not None:
            self.k = source.said.k or settings.whole(k, "k")
        else:
            self.ask("k", question)

    def ask(self, name: str, text: str, default: Plain = None) -> None:
        """Ask a person for an option; without a default, loading is refused until it is answered."""
        self.questions.append(Question(name, text, default is None, default, choices_of(name)))


TWO_SIDED = (
    "Activations may be negative: every latent is shown as two, number i for its positive side and number i + {} "
    "for its negative, which changes neither what is selected nor what is reconstructed."
)
SQUARE = "There are as many latents as dimensions: shapes cannot tell which way round the matrices are stored."
NOT_CONFIG = {"tensors", "output_scale", "since_fired", "transcoder", "two_sided", "folds", "questions", "notes"}


def settle(draft: Draft, source: Source) -> None:
    """Put what the person said in place of what the files say, and ask for what neither does."""
    said = source.said
    for name in ("hook_name", "hook_name_out", "model_name", "input_norm", "input_scale", "subtract_b_dec"):
        if getattr(said, name) is not None:
            setattr(draft, name, getattr(said, name))
    if said.architecture is not None and said.architecture != draft.architecture:
        _rechoose(draft, cast(Architecture, said.architecture))
    draft.k = said.k or draft.k
    _settle_transcoder(draft, source)
    draft.questions = [each for each in draft.questions if getattr(said, each.field) is None]
    _settle_squares(draft, said.turned)
    if draft.hook_name is None:
        draft.ask("hook_name", "The files do not say which hook point the SAE reads: choose it.")
    if draft.two_sided:
        draft.notes.append(TWO_SIDED.format(sizes_of(draft.tensors)[1]))
    if draft.notes:
        draft.metadata["note"] = " ".join(draft.notes)


def _settle_squares(draft: Draft, turned: bool | None) -> None:
    """Ask which way round square matrices are stored, or turn them."""
    d_in, d_sae, d_out = sizes_of(draft.tensors)
    if d_sae not in (d_in, d_out):
        return
    if turned is None:
        draft.ask("turned", SQUARE, default=False)
    for name in MATRICES & draft.tensors.keys() if turned else ():
        if draft.tensors[name].shape == (d_sae, d_sae):
            draft.tensors[name] = draft.tensors[name].T


def _rechoose(draft: Draft, architecture: Architecture) -> None:
    draft.architecture = architecture
    if architecture not in WITH_K:
        draft.k = None
    elif draft.k is None:
        draft.ask("k", K)
    if architecture not in WITH_THRESHOLD:
        draft.tensors.pop("threshold", None)


def _settle_transcoder(draft: Draft, source: Source) -> None:
    said = source.said
    if said.transcoder is False:
        draft.hook_name_out, draft.transcoder = None, False
    if said.transcoder or draft.hook_name_out is not None:
        draft.transcoder = True
    if not draft.transcoder:
        return
    if said.subtract_b_dec is None:
        draft.subtract_b_dec = False
    if draft.hook_name_out is None:
        draft.ask(
            "hook_name_out", "This is a transcoder, and the files do not say where it writes: give hook_name_out."
        )


def describe(draft: Draft, source: Source) -> Detected:
    """Return what is known before anything is computed; draft is settled."""
    d_in, d_sae, d_out = _check_shapes(draft)
    contexts = [draft.metadata[name] for name in CONTEXT_SIZES if name in draft.metadata]
    return Detected(
        format=draft.format,
        format_title=FORMATS[draft.format],
        architecture=draft.architecture,
        d_in=d_in,
        d_out=d_out,
        d_sae=2 * d_sae if draft.two_sided else d_sae,
        k=draft.k,
        dtype=str(draft.tensors["W_enc"].dtype).removeprefix("torch."),
        hook_name=draft.hook_name,
        hook_name_out=draft.hook_name_out,
        lm_name=draft.model_name,
        context_size=next((each for each in contexts if isinstance(each, int)), None),
        normalisation=draft.input_norm,
        input_scale=draft.input_scale,
        file=source.name,
        questions=draft.questions,
        notes=draft.notes,
    )


def _check_shapes(draft: Draft) -> tuple[int, int, int]:
    """Refuse what loading would, as far as shapes and settings tell; return d_in, d_sae, d_out."""
    sizes = sizes_of(draft.tensors)
    shapes = {name: tuple(oriented(each, name, sizes).shape) for name, each in draft.tensors.items()}
    cfg = _config(draft, *sizes)
    if draft.k is None and draft.architecture in WITH_K:
        cfg = replace(cfg, k=1)
    try:
        validity.check(cfg, dict.fromkeys(TENSORS) | shapes)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    return sizes


def assemble(draft: Draft, source: Source) -> SparseAutoencoder:
    """Return the SAE of a settled draft; what is still open and cannot be assumed is an error."""
    for question in draft.questions:
        if question.required and question.field != "hook_name":
            raise CheckpointError(question.text, question)
    for fold in draft.folds:
        fold(draft)
    if draft.two_sided:
        split_sides(draft.tensors)
    sizes = sizes_of(draft.tensors)
    of_file = source.files.storages()
    tensors: dict[str, Tensor] = {}
    for name in list(draft.tensors):  # taken out one by one, so that little is there twice
        tensors[name] = _own_copy(oriented(draft.tensors.pop(name), name, sizes), name, of_file)
    if "threshold" in tensors:
        # Below zero it has no effect (dictionary_learning's "never set" is -1): relu has the last word.
        tensors["threshold"].clamp_(min=0)
    try:
        return SparseAutoencoder(_config(draft, *sizes), **tensors, since_fired=_counter(draft.since_fired, sizes[1]))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _counter(found: Any, d_sae: int) -> Tensor | None:
    """What a checkpoint counts for each latent; None where it is something else, for no number follows from it."""
    if not isinstance(found, Tensor) or found.shape != (d_sae,) or found.dtype not in (torch.int32, torch.int64):
        return None
    return found.to(torch.int64, copy=True) if bool((found >= 0).all()) else None


def tensors_of(weights: Mapping[str, Any], required: set[str], optional: set[str], what: str) -> dict[str, Tensor]:
    """Return the required and what is there of the optional; any other tensor or dtype is an error."""
    if missing := required - weights.keys():
        raise CheckpointError(f"{listed(sorted(missing))} missing; {what} needs it. Found: {listed(sorted(weights))}.")
    if unknown := weights.keys() - required - optional:
        raise CheckpointError(
            f"{what} has no {listed(sorted(unknown))}; these weights are of another kind. "
            f"Found: {listed(sorted(weights))}."
        )
    chosen = {name: weights[name] for name in weights if name in required | optional}
    for name, tensor in chosen.items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            kind = str(tensor.dtype) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"{name} is {kind}; expected a tensor of floating-point numbers.")
    return chosen


def _config(draft: Draft, d_in: int, d_sae: int, d_out: int) -> SaeConfig:
    output_scale = 1 / draft.input_scale if draft.output_scale is None else draft.output_scale
    fields = {name: value for name, value in vars(draft).items() if name not in NOT_CONFIG}
    return SaeConfig(d_in=d_in, d_sae=d_sae, d_out=d_out, output_scale=output_scale, **fields)


def flipped(tensor: Tensor, name: str) -> Tensor:
    """Return a matrix as the format stores it the other way round."""
    if tensor.ndim != 2:
        raise CheckpointError(f"{name} is {_shape(tensor)}; expected a matrix.")
    return tensor.T


def split_sides(tensors: dict[str, Tensor]) -> None:
    """Make latent i into i, its positive side, and i + d_sae, its negative, with the negated weights of both.

    The k largest |pre_acts| are the k largest of pre_acts and -pre_acts, and an activation a along a decoder row is
    -a along the negated row, so selection and reconstruction stay what they were.
    """
    sizes = sizes_of(tensors)
    encoder, decoder = (oriented(tensors[name], name, sizes) for name in ("W_enc", "W_dec"))
    tensors["W_enc"], tensors["W_dec"] = torch.cat([encoder, -encoder], 1), torch.cat([decoder, -decoder])
    tensors["b_enc"] = torch.cat([tensors["b_enc"], -tensors["b_enc"]])


def sizes_of(tensors: Mapping[str, Tensor]) -> tuple[int, int, int]:
    """Return d_in, d_sae, d_out: biases have one length, whichever way round the matrices are stored."""
    for name, ndim in {"W_enc": 2, "b_enc": 1, "W_dec": 2, "b_dec": 1}.items():
        if tensors[name].ndim != ndim:
            kind = "a matrix" if ndim == 2 else "one number for each latent or coordinate"
            raise CheckpointError(f"{name} is {_shape(tensors[name])}; expected {kind}.")
    d_sae, d_out = len(tensors["b_enc"]), len(tensors["b_dec"])
    rows, columns = tensors["W_enc"].shape
    if d_sae not in (rows, columns):
        raise CheckpointError(f"W_enc is {_shape(tensors['W_enc'])}, but b_enc has {d_sae} numbers, one per latent.")
    return (rows if columns == d_sae else columns), d_sae, d_out


def oriented(tensor: Tensor, name: str, sizes: tuple[int, int, int]) -> Tensor:
    """Return a matrix this project's way round; a square one is as the format's convention left it."""
    d_in, d_sae, d_out = sizes
    encoder = (d_in, d_sae)
    expected = {"W_enc": encoder, "W_glu": encoder, "W_dec": (d_sae, d_out), "W_skip": (d_in, d_out)}.get(name)
    turned = expected and tensor.shape != expected and tensor.shape == expected[::-1]
    return tensor.T if turned else tensor


def _own_copy(tensor: Tensor, name: str, of_file: set[int]) -> Tensor:
    """Return a float32 copy: views of the file would change, or crash the process, when someone writes to it.

    What a fold has made is nobody else's, and taken as it is. W_enc keeps the memory order of the file, which the
    matmul reads either way; all else becomes contiguous.
    """
    order = torch.preserve_format if name == "W_enc" else torch.contiguous_format
    copied = tensor.untyped_storage().data_ptr() in of_file
    copy = tensor.to(torch.float32, copy=copied, memory_format=order)
    if name != "W_enc":
        copy = copy.contiguous()
    if copy.numel() and not all(bound.isfinite() for bound in torch.aminmax(copy)):
        raise CheckpointError(
            f"{name} has values that are NaN or infinite in float32: training diverged, or the file is "
            "damaged. Give another checkpoint."
        )
    return copy


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a single number"
