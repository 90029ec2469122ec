"""Writing and reading saved autoencoders: SAELens folders, and files of OpenAI's sparse_autoencoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from demo.training.settings import CTX_LEN, HOOK_NAME
from demo.training.sparse import JumpReLU, TopK


def save_saelens(sae: TopK | JumpReLU, folder: Path, tokens: int) -> None:
    """Write cfg.json and sae_weights.safetensors (float16), with a JumpReLU's input scale divided out."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = sae.scale if isinstance(sae, JumpReLU) else 1.0
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_enc": sae.b_enc / scale, "b_dec": sae.b_dec / scale}
    if isinstance(sae, JumpReLU):
        tensors["threshold"] = sae.threshold / scale
    half = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    save_file(half, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config(sae, tokens), indent=1))


def config(sae: TopK | JumpReLU, tokens: int) -> dict[str, Any]:
    """What SAELens 6 keeps in cfg.json."""
    d_sae, d_in = sae.W_dec.shape
    topk = {"k": sae.k, "rescale_acts_by_decoder_norm": False} if isinstance(sae, TopK) else {}
    return {
        "architecture": sae.activation,
        **topk,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if isinstance(sae, TopK) else "none",
        "reshape_activations": "none",
        "metadata": metadata(tokens),
    }


def metadata(tokens: int) -> dict[str, Any]:
    """Where in which model the autoencoder reads, and how long it was trained."""
    return {
        "model_name": "pystdlib-gpt2-5m",
        "hook_name": HOOK_NAME,
        "hook_head_index": None,
        "model_class_name": "HookedTransformer",
        "context_size": CTX_LEN,
        "prepend_bos": True,
        "seqpos_slice": [None],
        "sae_lens_version": "6.0.0",
        "training_tokens": tokens,
    }


def save_openai(sae: TopK | JumpReLU, path: Path) -> None:
    """Write OpenAI's state dict; that its inputs are layer-normalised is understood from "TopK"."""
    if not isinstance(sae, TopK):
        raise TypeError("OpenAI's format has no JumpReLU; save a SAELens folder instead.")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "pre_bias": sae.b_dec,
        "encoder.weight": sae.W_enc.T,
        "latent_bias": sae.b_enc,
        "decoder.weight": sae.W_dec.T,
    }
    state: dict[str, Any] = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    state["stats_last_nonzero"] = sae.silent_for.clone()
    # buffers that its loader wants and never reads back for a trained model
    state["latents_activation_frequency"] = torch.ones(len(sae.b_enc))
    state["latents_mean_square"] = torch.zeros(len(sae.b_enc))
    state["activation"] = "TopK"
    state["activation_state_dict"] = {"k": sae.k, "postact_fn": "ReLU"}
    torch.save(state, path)


def load(path: Path) -> TopK | JumpReLU:
    """Read a SAELens folder or an OpenAI file written by this module, for float32 arithmetic in raw units."""
    return load_openai(path) if path.suffix == ".pt" else load_saelens(path)


def load_saelens(folder: Path) -> TopK | JumpReLU:
    """Read cfg.json and sae_weights.safetensors."""
    cfg = json.loads((folder / "cfg.json").read_text())
    sizes = cfg["d_in"], cfg["d_sae"]
    sae = TopK(*sizes, cfg["k"]) if cfg["architecture"] == "topk" else JumpReLU(*sizes)
    sae.load_state_dict(load_file(folder / "sae_weights.safetensors"))
    return sae


def load_openai(path: Path) -> TopK:
    """Read an OpenAI state dict, matrices turned to our orientation."""
    state = torch.load(path, weights_only=True)
    d_in, d_sae = state["decoder.weight"].shape
    sae = TopK(d_in, d_sae, state["activation_state_dict"]["k"])
    weights = {"W_enc": state["encoder.weight"].T, "W_dec": state["decoder.weight"].T}
    sae.load_state_dict({**weights, "b_enc": state["latent_bias"], "b_dec": state["pre_bias"]})
    return sae
