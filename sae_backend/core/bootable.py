"""Whether a language model can be used, told from its files' names and config.json before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_backend.core.language_model import ELSEWHERE, FILES, LanguageModelError
from sae_backend.core.text import json_fault

INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
LARGEST_JSON = 1 << 26  # bytes
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
LEEWAY = 1.15  # of the weights' size, for a batch's hidden states
GB = 1e9


def wanted(files: Mapping[str, int]) -> dict[str, int]:
    """The files of a repository that a language model is loaded from: those at its root, and no second copy of them."""
    suffixes = tuple(pattern.removeprefix("*") for pattern in FILES)
    mine = (name for name in files if name.endswith(suffixes) and not any(fnmatch(name, p) for p in ELSEWHERE))
    return {name: files[name] for name in mine}


def check_names(names: Collection[str], where: str) -> None:
    """Refuse a folder that lacks what a language model needs."""
    if "config.json" not in names:
        inside = " (perhaps one of its folders is one?)" if any(n.endswith("/config.json") for n in names) else ""
        raise LanguageModelError(f"{where} holds no config.json{inside}: it is no model that transformers saved")
    if "model.safetensors" not in names and INDEX not in names:
        raise LanguageModelError(_no_weights(names, where))
    if not set(TOKENIZERS) & set(names):
        raise LanguageModelError(
            f"{where} holds no tokenizer (tokenizer.json or tokenizer.model): put there the one it was trained with"
        )


def _no_weights(names: Collection[str], where: str) -> str:
    if any(name.endswith(PICKLED) for name in names):
        return (
            f"{where} has its weights in pickles alone, which can run code and are not opened here: convert them with "
            "save_pretrained(folder, safe_serialization=True), or take a revision that has model.safetensors"
        )
    if any(name.endswith(".gguf") for name in names):
        return f"{where} has its weights as GGUF, which is not read here: take the repository that they were made from"
    return f"{where} holds no model.safetensors: it has no weights that can be read here"


def read_config(path: Path) -> dict[str, Any]:
    """A file of JSON with one object, whoever wrote it."""
    if path.stat().st_size > LARGEST_JSON:
        raise LanguageModelError(f"{path.name} has more than {LARGEST_JSON >> 20} MB; it is no configuration")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise LanguageModelError(f"{path.name} is not JSON: {json_fault(error)}") from error
    if not isinstance(found, dict):
        raise LanguageModelError(f"{path.name} holds no JSON object")
    return found


def check_index(index: Mapping[str, Any], names: Collection[str], where: str) -> None:
    """Refuse an index that names weights which are not beside it: it may come from anybody."""
    places = index.get("weight_map")
    named = set(places.values()) if isinstance(places, dict) else set()
    if missing := sorted(str(name) for name in named if name not in names):
        raise LanguageModelError(
            f"{where} lacks {len(missing)} of its {len(named)} files of weights, the first {missing[0][:100]!r}: it "
            "was copied or uploaded in part"
        )
    if not named:
        raise LanguageModelError(f"{INDEX} of {where} names no files of weights")


def check_config(config: Mapping[str, Any], where: str) -> str:
    """The class of the model, once transformers and TransformerLens are known to have it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, given = str(config.get("model_type")), config.get("architectures")
    if kind not in CONFIG_MAPPING_NAMES and "auto_map" in config:
        raise LanguageModelError(
            f"{where} brings code of its own for {kind!r}, which is never run here: only what transformers itself "
            "knows is"
        )
    if kind not in CONFIG_MAPPING_NAMES:
        raise LanguageModelError(f"{where} is of the type {kind!r}, which transformers {version('transformers')} lacks")
    usual = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    name = str(given[0]) if isinstance(given, list) and given else _one(usual)
    if usual is None:
        raise LanguageModelError(f"{where} is a {name or kind}, and predicts no next token: take a causal model")
    _check_lens(name, where)
    return name


def _one(names: Any) -> str:
    return str(names[0] if isinstance(names, (list, tuple)) else names or "")


def _check_lens(name: str, where: str) -> None:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    if name not in SUPPORTED_ARCHITECTURES:
        raise LanguageModelError(
            f"TransformerLens {version('transformer-lens')} has no adapter for {name}, the architecture of {where}: "
            f"its hook points have no names. It has {len(SUPPORTED_ARCHITECTURES)} others, such as GPT2LMHeadModel, "
            "GPTNeoXForCausalLM, LlamaForCausalLM, Gemma2ForCausalLM, Qwen2ForCausalLM"
        )


def check_memory(config: Mapping[str, Any], weights: int, dtype: str, free: int, device: str, where: str) -> None:
    """Refuse what does not fit; `weights` is their size on the disk and `free` what the device has, in bytes."""
    stored = BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4)
    needed = int(weights / stored * BYTES[dtype] * LEEWAY)
    if needed > free:
        narrower = " or COMPUTE_DTYPE=bfloat16" if dtype == "float32" else ""
        raise LanguageModelError(
            f"{where} has {weights / stored / GB:.1f} billion parameters: in {dtype} it needs about {needed / GB:.1f} "
            f"GB, and this worker has {free / GB:.1f} GB free on {device}. Use a worker with more memory{narrower}"
        )
