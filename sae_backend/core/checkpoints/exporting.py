"""Write an SAE as another library reads it, so that `load` gives the same SAE back.

What a layout cannot say is folded into the weights where that is exact but for rounding, and refused where it is not.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..config import Plain, SaeConfig
from ..sae import SparseAutoencoder
from .errors import CheckpointError

LAYOUTS = ("saelens", "sparsify")
NORMS = {"none": "none", "layer_norm": "layer_norm", "constant_norm": "constant_norm_rescale"}
OF_TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder", "batchtopk": "jumprelu_transcoder"}
MODULES = {"hook_resid_post": "layers.{}", "hook_mlp_out": "layers.{}.mlp", "hook_attn_out": "layers.{}.self_attn"}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def export(sae: SparseAutoencoder, folder: str | Path, layout: str = "saelens") -> None:
    """Write a folder that `load` reads; CheckpointError says what the layout cannot express.

    The identity is the same after `load` unless something had to be folded: other scales in a transcoder, and in
    sparsify any scale, and b_dec where an SAE does not subtract it.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"There is no layout {layout!r}; there are {', '.join(LAYOUTS)}.")
    if sae.W_glu is not None:
        raise CheckpointError("A gated linear encoder can be written in neither layout; keep its own files.")
    if sae.cfg.input_norm == "centred":
        raise CheckpointError("Neither layout can say that inputs are centred; keep its own files.")
    if sae.cfg.rank_by_decoder_norm:
        raise CheckpointError(
            "Neither layout can rank latents by pre_acts times decoder norm and show pre_acts; keep its own files."
        )
    (_saelens if layout == "saelens" else _sparsify)(sae.to("cpu"), Path(folder))


def _saelens(sae: SparseAutoencoder, folder: Path) -> None:
    if sae.cfg.output_scale != 1 / sae.cfg.input_scale:
        sae = without_scales(sae)
    _write(folder, {"cfg.json": _saelens_settings(sae)}, "sae_weights.safetensors", _saelens_tensors(sae))
    if sae.cfg.input_scale != 1.0:
        scaler = {"scaling_factor": sae.cfg.input_scale, "has_whitening": False}
        (folder / "activation_scaler.json").write_text(json.dumps(scaler))


def _saelens_settings(sae: SparseAutoencoder) -> dict[str, Any]:
    cfg = sae.cfg
    scaled = cfg.input_norm == "none" and cfg.input_scale != 1.0
    written: dict[str, Any] = {
        "architecture": _saelens_architecture(sae),
        "d_in": cfg.d_in,
        "d_sae": cfg.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": cfg.subtract_b_dec,
        "normalize_activations": "expected_average_only_in" if scaled else NORMS[cfg.input_norm],
        "reshape_activations": "hook_z" if (cfg.hook_name or "").endswith("hook_z") else "none",
    }
    if cfg.hook_name_out is not None:
        written["d_out"] = cfg.d_out
    if cfg.k is not None:
        written["k"] = cfg.k
    if cfg.architecture == "tanh_relu":  # which SAELens had until version 5, whose settings are flat
        return written | {"activation_fn_str": "tanh-relu"} | _about(cfg)
    return written | {"metadata": _about(cfg)}


def _about(cfg: SaeConfig) -> dict[str, Plain]:
    names = {"hook_name": cfg.hook_name, "hook_name_out": cfg.hook_name_out, "model_name": cfg.model_name}
    rest = {name: value for name, value in cfg.metadata.items() if name != "note"}
    return rest | {name: value for name, value in names.items() if value is not None}


def _saelens_architecture(sae: SparseAutoencoder) -> str:
    cfg = sae.cfg
    if cfg.hook_name_out is not None:
        if cfg.architecture not in OF_TRANSCODERS:
            raise CheckpointError(
                f"SAELens has no {cfg.architecture} transcoder; export it as sparsify or keep its own files."
            )
        named = OF_TRANSCODERS[cfg.architecture]
        return named if sae.W_skip is None else named.replace("transcoder", "skip_transcoder")
    if sae.W_skip is not None or cfg.d_in != cfg.d_out:
        raise CheckpointError("SAELens needs the hook point that a transcoder writes to: say hook_name_out.")
    if cfg.architecture == "groupmax":
        raise CheckpointError("SAELens has no GroupMax; export it as sparsify.")
    return {"batchtopk": "jumprelu", "tanh_relu": "standard"}.get(cfg.architecture, cfg.architecture)


def _saelens_tensors(sae: SparseAutoencoder) -> dict[str, Tensor]:
    tensors = sae.tensors()
    if sae.cfg.architecture == "gated" and bool(tensors.pop("b_enc").any()):
        raise CheckpointError("SAELens' gated SAEs have no b_enc, and this one's is not zero; keep its own files.")
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T
    return tensors


def _sparsify(sae: SparseAutoencoder, folder: Path) -> None:
    cfg = sae.cfg
    if cfg.architecture not in ("topk", "groupmax") or cfg.input_norm != "none" or cfg.d_in != cfg.d_out:
        raise CheckpointError(
            "sparsify has only TopK and GroupMax, of inputs as they are, that write as many dimensions as they read; "
            "export this as SAELens."
        )
    sae = _with_bias(without_scales(sae), cfg.hook_name_out is None)
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    } | ({} if sae.W_skip is None else {"W_skip": sae.W_skip.T})
    _write(folder / _module(cfg), {"cfg.json": _sparsify_settings(sae)}, "sae.safetensors", tensors)
    run = {"model": cfg.model_name, "hookpoints": [_module(cfg)], "ctx_len": cfg.metadata.get("context_size")}
    (folder / "config.json").write_text(json.dumps(run))


def _sparsify_settings(sae: SparseAutoencoder) -> dict[str, Any]:
    """As sparsify writes them, and the hook points, which it ignores and only folders' names tell otherwise."""
    cfg = sae.cfg
    return {
        "activation": cfg.architecture,
        "expansion_factor": max(1, cfg.d_sae // cfg.d_in),
        "normalize_decoder": False,
        "num_latents": cfg.d_sae,
        "k": cfg.k,
        "multi_topk": False,
        "skip_connection": sae.W_skip is not None,
        "transcode": cfg.hook_name_out is not None,
        "d_in": cfg.d_in,
        "hook_name": cfg.hook_name,
        "hook_name_out": cfg.hook_name_out,
    }


def _module(cfg: SaeConfig) -> str:
    """Return the folder's name: the module whose output the SAE reads or the transcoder writes."""
    found = BLOCK.fullmatch(cfg.hook_name_out or cfg.hook_name or "")
    if found is None:
        return "sae"
    return MODULES.get(found[2], f"layers.{{}}.{found[2]}").format(found[1])


def without_scales(sae: SparseAutoencoder) -> SparseAutoencoder:
    """Return the SAE with its constant factors in its weights."""
    cfg = sae.cfg
    if cfg.input_scale == cfg.output_scale == 1.0:
        return sae
    if cfg.output_scale != 1 / cfg.input_scale:
        sae = _with_bias(sae, False)
    changed = {
        "W_enc": sae.W_enc * cfg.input_scale,
        "W_dec": sae.W_dec * cfg.output_scale,
        "b_dec": sae.b_dec * cfg.output_scale,
    }
    return SparseAutoencoder(replace(sae.cfg, input_scale=1.0, output_scale=1.0), **(sae.tensors() | changed))


def _with_bias(sae: SparseAutoencoder, subtract: bool) -> SparseAutoencoder:
    """Return the SAE reading x - b_dec or x, with what that changes in b_enc."""
    if sae.cfg.subtract_b_dec == subtract:
        return sae
    moved = sae.b_dec @ sae.W_enc
    b_enc = sae.b_enc + moved if subtract else sae.b_enc - moved
    return SparseAutoencoder(replace(sae.cfg, subtract_b_dec=subtract), **(sae.tensors() | {"b_enc": b_enc}))


def _write(folder: Path, settings: dict[str, Any], name: str, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / name)
    for file, written in settings.items():
        (folder / file).write_text(json.dumps(written, indent=1))
