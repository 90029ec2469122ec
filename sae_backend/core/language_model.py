"""The language model: loaded once, run up to a hook point, spliced for interventions.

TransformerLens' bridge names the hook points and does the interventions. Where one tensor is captured from many
tokens, the plain Hugging Face forward runs instead, with fused attention, and stops at that module: the bridge's
hooks and eager attention cost twice as much. `capture` proves at the first call that both give the same tensor.
"""

from __future__ import annotations

import copy
import hashlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sae_backend.core.norms import linear_part, normalised
from sae_backend.core.taps import Side, Taps

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# TransformerLens hook → (component of the bridge, its input or its output); the first that gives the same is taken
_SITES: dict[str, tuple[tuple[str, Side], ...]] = {
    "hook_embed": (("embed", "out"),),
    "hook_resid_pre": (("blocks.{}", "in"),),
    "hook_resid_mid": (("blocks.{}.ln2", "in"), ("blocks.{}.mlp", "in")),  # OLMo 2 has no norm before the MLP
    "hook_resid_post": (("blocks.{}", "out"),),
    # a norm may follow (Gemma 2), the residual stream be added inside (BLOOM), the MLP be no module (OPT)
    "hook_attn_out": (("blocks.{}.ln1_post", "out"), ("blocks.{}.attn", "out"), ("blocks.{}.attn.o", "out")),
    "hook_mlp_out": (("blocks.{}.ln2_post", "out"), ("blocks.{}.mlp", "out"), ("blocks.{}.mlp.out", "out")),
    "attn.hook_z": (("blocks.{}.attn.o", "in"),),
    "mlp.hook_post": (("blocks.{}.mlp.out", "in"),),
    "ln1.hook_normalized": (("blocks.{}.ln1", "in"),),  # read only, and normalised once more: see norms.py
    "ln2.hook_normalized": (("blocks.{}.ln2", "in"),),
}
_Site = tuple[nn.Module, Side]
_NORMALISED = "hook_normalized"
_Form = Callable[[Any], Any]
_FORMS: tuple[_Form, ...] = (lambda hidden: hidden, lambda hidden: (hidden,))  # blocks return a tensor, or a tuple
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")  # what a language model is loaded from
ELSEWHERE = ["*/*", "consolidated*"]  # other models of a repository, and second copies of its weights
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")


class LanguageModelError(Exception):
    """A language model that cannot be used, with a sentence that says what to do."""


class _Captured(Exception):
    """Raised inside a forward to stop it once the wanted tensor is there."""


@dataclass(frozen=True)
class Unembedding:
    """What a residual-stream direction does to the logits: W [d_model d_vocab], the final norm folded in."""

    weight: Tensor


class LM:
    """A causal language model with its tokenizer; `capture` and `splice` are what runs need."""

    def __init__(self, hf_model: PreTrainedModel, tokenizer: Any, source: str) -> None:
        self.hf: Any = hf_model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.source = source
        self._bridge: Any = None
        self._proved: dict[str, _Site | None] = {}
        self._forms: dict[str, _Form | None] = {}
        self._taps = Taps()
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.hf.parameters()).dtype

    @property
    def config(self) -> Any:
        return self.hf.config

    @property
    def bridge(self) -> Any:
        """TransformerLens' view of the same weights (parameters are shared, not copied)."""
        with self._lock:
            if self._bridge is None:
                self._bridge = self._boot_bridge()
        return self._bridge

    def _boot_bridge(self) -> Any:
        from transformer_lens.model_bridge import TransformerBridge

        shared = {id(t): t for t in (*self.hf.parameters(), *self.hf.buffers())}
        twin = copy.deepcopy(self.hf, shared)
        return TransformerBridge.boot_transformers(
            self.source, hf_model=twin, tokenizer=self.tokenizer, device=str(self.device), dtype=self.dtype,
            trust_remote_code=False,
        ).eval()

    def layer_of(self, hook_name: str) -> int:
        """The block a hook point lives in; the embeddings' stands before the first."""
        if hook_name == "hook_embed":
            return 0
        match = _HOOK.fullmatch(hook_name)
        n_layers = int(self.bridge.cfg.n_layers)
        if not match or int(match[1]) >= n_layers:
            raise LanguageModelError(
                f"hook point {hook_name!r} is not one of this language model, which has blocks.0 … "
                f"blocks.{n_layers - 1}: for example blocks.{n_layers // 2}.hook_resid_post"
            )
        return int(match[1])

    def width(self, hook_name: str) -> int:
        """d_in of an SAE that reads this hook point."""
        tokens = torch.zeros(1, 2, dtype=torch.long, device=self.device)
        return int(self.capture(tokens, hook_name).shape[-1])

    @torch.no_grad()
    def capture(self, tokens: Tensor, hook_name: str) -> Tensor:
        """Hidden state [batch pos d_in] at the hook point, heads flattened; the forward stops there."""
        site = self._site(hook_name)
        return self._bridge_capture(tokens, hook_name) if site is None else self._read(tokens, hook_name, site)

    def _read(self, tokens: Tensor, hook_name: str, site: _Site) -> Tensor:
        hidden = self._plain_capture(tokens, site)
        return normalised(site[0], hidden) if hook_name.endswith(_NORMALISED) else hidden

    def _site(self, hook_name: str) -> _Site | None:
        """The module of the plain forward that was seen to give the bridge's tensor at this hook point."""
        with self._lock:
            if hook_name not in self._proved:
                expected = self._bridge_capture(self._probe(), hook_name)
                fits = (site for site in self._sites(hook_name) if self._gives(site, hook_name, expected))
                self._proved[hook_name] = next(fits, None)
        return self._proved[hook_name]

    def _sites(self, hook_name: str) -> Iterator[_Site]:
        """Modules of the plain forward that may read or write the hook point."""
        match = _HOOK.fullmatch(hook_name)
        layer, kind = match.groups() if match else ("", hook_name)
        for path, side in _SITES.get(kind, ()):
            try:
                remote = self.bridge.adapter.translate_transformer_lens_path(path.format(layer))
                module = self.hf.get_submodule(remote)
            except (AttributeError, ValueError):
                continue  # this architecture has no such component
            yield module, side

    def _gives(self, site: _Site, hook_name: str, expected: Tensor) -> bool:
        try:
            return _alike(self._read(self._probe(), hook_name, site), expected, self.dtype)
        except (AttributeError, LanguageModelError, RuntimeError):
            return False  # a norm of another kind, never called, or of another size

    def _probe(self) -> Tensor:
        """A few tokens [1 pos] on which two ways to compute the same are compared."""
        return torch.arange(min(8, int(self.bridge.cfg.d_vocab)), device=self.device)[None]

    def _bridge_capture(self, tokens: Tensor, hook_name: str) -> Tensor:
        layer = self.layer_of(hook_name)
        try:
            with self._lock:  # its hooks act in every thread
                _, cache = self.bridge.run_with_cache(tokens, names_filter=[hook_name], stop_at_layer=layer + 1)
            return cache[hook_name].reshape(*tokens.shape, -1)
        except KeyError as error:
            usual = ", ".join(name for kind in _SITES if (name := f"blocks.{layer}.{kind}") in self.bridge.hook_dict)
            raise LanguageModelError(
                f"TransformerLens has no hook point {hook_name!r} in this model; there are {usual} and others"
            ) from error

    def _plain_capture(self, tokens: Tensor, site: _Site) -> Tensor:
        kept: list[Tensor] = []

        def take(hidden: Tensor) -> Tensor:
            kept.append(hidden)
            raise _Captured

        with self._taps.changed(*site, take), suppress(_Captured):
            self.hf(tokens, use_cache=False)
        if not kept:
            raise LanguageModelError(f"the plain forward does not call {site[0]}")
        return kept[0].reshape(*tokens.shape, -1)  # from heads, or from tokens end to end

    @torch.no_grad()
    def captures(self, tokens: Tensor, hook_names: Sequence[str]) -> list[Tensor]:
        """Hidden states at several hook points, of one forward where the plain one gives them all."""
        sites = [self._site(name) for name in hook_names]
        found: dict[int, Tensor] = {}

        def keep(i: int, hidden: Tensor) -> Tensor:
            found[i] = hidden.clone()  # a block may add to it in place
            return hidden

        with ExitStack() as stack:
            for i, site in enumerate(sites):
                if site is None:
                    return [self.capture(tokens, name) for name in hook_names]
                stack.enter_context(self._taps.changed(*site, partial(keep, i)))
            self.hf(tokens, use_cache=False)
        return [found[i].reshape(*tokens.shape, -1) for i in range(len(sites))]

    @torch.no_grad()
    def splice(self, tokens: Tensor, hook_name: str, replace: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits [batch pos d_vocab] with what capture gives at the hook point passed through `replace`."""
        site = None if hook_name.endswith(_NORMALISED) else self._site(hook_name)
        middle = hook_name.endswith("hook_resid_mid")
        if site is None and middle:
            raise LanguageModelError(f"{hook_name!r} of this language model can be read, but not replaced")

        def swap(hidden: Tensor, hook: Any = None) -> Tensor:
            return replace(hidden.reshape(*tokens.shape, -1)).to(hidden.dtype).reshape(hidden.shape)

        if site is None:
            with self._lock:
                return self.bridge.run_with_hooks(tokens, fwd_hooks=[(hook_name, swap)])
        if middle:
            return self._splice_middle(tokens, hook_name, site, swap)
        with self._taps.changed(*site, swap):  # what a module writes, or what it alone reads
            return self.logits(tokens)

    def _splice_middle(self, tokens: Tensor, hook_name: str, site: _Site, swap: Callable[[Tensor], Tensor]) -> Tensor:
        """Replace the middle of the residual stream, which the second norm and the sum after the MLP both read.

        TransformerLens' own hook there changes only what the norm reads.
        """
        change: list[Tensor] = []

        def kept(hidden: Tensor) -> Tensor:
            new = swap(hidden)
            change.append(new - hidden)
            return new

        def moved(hidden: Tensor) -> Tensor:
            return hidden + change.pop().reshape(hidden.shape)

        block = self._block(self.layer_of(hook_name))
        with self._taps.changed(*site, kept), self._taps.changed(block, "out", moved):
            return self.logits(tokens)

    def _block(self, layer: int) -> nn.Module:
        return next(self._sites(f"blocks.{layer}.hook_resid_post"))[0]

    @torch.no_grad()
    def resume(self, tokens: Tensor, hook_name: str, hidden: Tensor) -> Tensor:
        """Logits [batch pos d_vocab] with `hidden` [batch pos d_in] at the hook point.

        Between two blocks the forward begins there; elsewhere it is run whole and spliced.
        """
        form = self._block_form(hook_name)
        if form is not None:
            return self._from_block(tokens, hook_name, hidden, form)
        return self.splice(tokens, hook_name, lambda there: hidden.reshape(there.shape))

    def _block_form(self, hook_name: str) -> _Form | None:
        """How blocks return their output, seen to give the whole forward's logits; None where none can be skipped."""
        with self._lock:
            if hook_name not in self._forms:
                site = self._site(hook_name) if hook_name.endswith("hook_resid_post") else None
                fits = (form for form in _FORMS if site is not None and self._resumes_alike(hook_name, site, form))
                self._forms[hook_name] = next(fits, None)
        return self._forms[hook_name]

    def _resumes_alike(self, hook_name: str, site: _Site, form: _Form) -> bool:
        tokens = self._probe()
        try:
            resumed = self._from_block(tokens, hook_name, self._plain_capture(tokens, site), form)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False
        return _alike(resumed, self.logits(tokens), self.dtype)

    def _from_block(self, tokens: Tensor, hook_name: str, hidden: Tensor, form: _Form) -> Tensor:
        """Blocks up to the hook point hand on what they are given; the last of them, `hidden`."""
        last = self.layer_of(hook_name)
        with ExitStack() as stack:
            for layer in range(last):
                stack.enter_context(self._taps.changed(self._block(layer), "instead", form))
            stack.enter_context(self._taps.changed(self._block(last), "instead", lambda _: form(hidden)))
            return self.logits(tokens)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        return self.hf(tokens, use_cache=False).logits

    def unembedding(self) -> Unembedding | None:
        """W_U with the final norm's gain folded in, centred over d_model where that norm removes the mean."""
        head = self.hf.get_output_embeddings()
        if head is None:
            return None
        weight = head.weight.detach().float().T  # [d_model d_vocab]
        norm = self._final_norm()
        if norm is not None:
            gain, centres = linear_part(norm, len(weight), weight.device)
            weight = weight * gain[:, None]
            weight = weight - weight.mean(0) if centres else weight
        return Unembedding(weight.contiguous())

    def _final_norm(self) -> nn.Module | None:
        try:
            return self.hf.get_submodule(self.bridge.adapter.translate_transformer_lens_path("ln_final"))
        except (AttributeError, ValueError):
            return None

    @property
    def bos_id(self) -> int | None:
        token = self.tokenizer.bos_token_id
        return None if token is None else int(token)


def _alike(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    """Equal up to the rounding of a dtype, each token [.. d] by its own norm: the first's is often far larger."""
    if a.shape != b.shape:
        return False
    error = (a - b).float().norm(dim=-1) / b.float().norm(dim=-1).clamp_min(1e-6)
    return bool(error.max() < (1e-3 if dtype == torch.float32 else 0.05))


def load_tokenizer(source: str, revision: str | None = None) -> Any:
    """The tokenizer alone, without weights."""
    from transformers import AutoTokenizer

    with _explained(source):
        return AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)


def load(source: str, dtype: torch.dtype = torch.float32, device: str = "cpu", revision: str | None = None) -> LM:
    """Load from a local folder or a hub name; attention fused where the architecture allows it."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of reading the weights: noise in a terminal, and in a worker's log
    tokenizer = load_tokenizer(source, revision)
    with _explained(source):
        hf = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    return LM(hf.to(device), tokenizer, source)  # type: ignore[arg-type]  # their decorator hides the method's type


@contextmanager
def _explained(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise LanguageModelError(
            f"cannot load the language model {source!r}: {error}. It must be a folder with config.json, "
            "tokenizer files and safetensors weights, or a hub name that this worker may download"
        ) from error


def folder(source: str, revision: str | None = None) -> Path:
    """The model's files on this machine; a hub name is resolved (and fetched, where allowed) first."""
    if Path(source).is_dir():
        return Path(source)
    if Path(source).is_absolute() or source.startswith("."):
        raise LanguageModelError(f"{source} is no folder; give one with config.json, tokenizer and safetensors weights")
    from huggingface_hub import errors, snapshot_download

    def snapshot(here: bool) -> Path:
        return Path(
            snapshot_download(
                source, revision=revision, local_files_only=here, allow_patterns=list(FILES), ignore_patterns=ELSEWHERE
            )
        )

    with _explained(source):
        if revision and _COMMIT.fullmatch(revision):  # what is here already is asked of nobody
            with suppress(errors.LocalEntryNotFoundError, errors.IncompleteSnapshotError):
                return snapshot(here=True)
        return snapshot(here=False)


def sha256(source: str, revision: str | None = None) -> str:
    """Identity of a language model: its configuration, tokenizer and weight files, byte for byte."""
    digest = hashlib.sha256()
    root = folder(source, revision)
    for path in sorted([*root.glob("*.safetensors"), root / "config.json", *root.glob("tokenizer.json")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
