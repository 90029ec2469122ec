"""Small language models, SAEs and tokenizers, made here with random weights: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from sae_backend.core import language_model
from sae_backend.core.config import SaeConfig
from sae_backend.core.language_model import LM
from sae_backend.core.sae import SparseAutoencoder

D_MODEL = 32
HOOK = "blocks.0.hook_resid_post"
SEPARATOR = "<|endoftext|>"
BLOCKS = {"num_hidden_layers": 2, "hidden_size": D_MODEL, "intermediate_size": 48, "num_attention_heads": 2}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": (GPT2Config, {"n_layer": 2, "n_embd": D_MODEL, "n_head": 2}),
    "llama": (LlamaConfig, {**BLOCKS, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "gpt_neox": (GPTNeoXConfig, BLOCKS),
    "gemma2": (Gemma2Config, {**BLOCKS, "num_key_value_heads": 1, "head_dim": 16}),
}


def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, spelled as GPT-2 does, and a separator that is also BOS where asked."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    begin = {"bos_token": SEPARATOR} if bos else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SEPARATOR, **begin)


def save_lm(folder: Path, architecture: str = "gpt2", **changes: Any) -> Path:
    """A random two-layer language model of bytes in folder; gains and biases of its norms are random too."""
    tokenizer = byte_tokenizer()
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    make, options = CONFIGS[architecture]
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "initializer_range": 0.3}
    config = make(**{**ids, **sizes, **options, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.data += 0.3 * torch.randn_like(parameter) if "norm" in name or "ln" in name else 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_lm(folder: Path, architecture: str = "gpt2") -> LM:
    return language_model.load(str(save_lm(folder, architecture)))


def small_sae(architecture: str = "topk", d_sae: int = 70, seed: int = 0, **options: Any) -> SparseAutoencoder:
    """A random SAE whose decoder norms differ widely, so that mixing up scales is seen."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    d_in = options.pop("d_in", D_MODEL)
    d_out = options.pop("d_out", d_in)
    k = options.pop("k", 5) if architecture in ("topk", "groupmax") else None
    glu = options.pop("glu", False)
    cfg = SaeConfig(architecture, d_in, d_sae, d_out, **{"hook_name": HOOK, "k": k, **options})
    extra: dict[str, torch.Tensor] = {}
    if architecture == "jumprelu":
        extra = {"threshold": 3 * torch.rand(d_sae, generator=g)}
    if architecture == "batchtopk":
        extra = {"threshold": torch.full((d_sae,), 2.0)}
    if architecture == "gated":
        extra = {"b_gate": randn(d_sae) - 4, "r_mag": 0.3 * randn(d_sae), "b_mag": randn(d_sae)}
    if glu:
        extra |= {"W_glu": randn(d_in, d_sae) / 4, "b_glu": randn(d_sae)}
    W_dec = randn(d_sae, d_out) * (0.1 + 3 * torch.rand(d_sae, 1, generator=g))
    b_enc = torch.zeros(d_sae) if architecture == "gated" else 0.3 * randn(d_sae)
    return SparseAutoencoder(cfg, randn(d_in, d_sae) / 4, b_enc, W_dec, 0.2 * randn(d_out), **extra)
