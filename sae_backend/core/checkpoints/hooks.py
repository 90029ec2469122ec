"""Names of other libraries for places in a language model, in TransformerLens' spelling."""

from __future__ import annotations

import re
from typing import Literal

BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)(?:\.(.+))?$")
SITES = {
    "resid_post": "hook_resid_post",
    "resid_mid": "hook_resid_mid",
    "resid_pre": "hook_resid_pre",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
    "hook_z": "attn.hook_z",
}
SITE = re.compile(rf"({'|'.join(SITES)})[_./-]*(?:layer|l)?[_.-]*(\d+)")
LAYER_SITE = re.compile(rf"(?:layer|l)[_.-]?(\d+)[_./-]+({'|'.join(SITES)})")
FILE = re.compile(r"([\w.-]+?)-SAE-l(\d+)[^/]*$", re.ASCII)
INPUTS = {
    "": "hook_resid_pre",
    "mlp": "mlp.hook_in",
    "feed_forward": "mlp.hook_in",
    "self_attn.o_proj": "attn.hook_z",
    "attn.c_proj": "attn.hook_z",
    "attention.dense": "attn.hook_z",
    "mlp.down_proj": "mlp.hook_post",
    "mlp.c_proj": "mlp.hook_post",
    "mlp.dense_4h_to_h": "mlp.hook_post",
}
OUTPUTS = {
    "": "hook_resid_post",
    "mlp": "hook_mlp_out",
    "feed_forward": "hook_mlp_out",
    "mlp.down_proj": "hook_mlp_out",
    "mlp.c_proj": "hook_mlp_out",
    "self_attn": "hook_attn_out",
    "attn": "hook_attn_out",
    "attention": "hook_attn_out",
    "self_attn.o_proj": "hook_attn_out",
    "attn.c_proj": "hook_attn_out",
    "pre_feedforward_layernorm": "mlp.hook_in",
    "post_feedforward_layernorm": "hook_mlp_out",
    "post_attention_layernorm": "hook_attn_out",
}
BEFORE_NORM = {"hook_mlp_out": "mlp.hook_out", "hook_attn_out": "attn.hook_out"}
NORMED = re.compile(r"gemma-?[23]", re.IGNORECASE)
"""Models that norm what a sublayer writes: TransformerLens' hook_mlp_out is behind that norm, the module's is not."""


def of_module(path: str, io: Literal["in", "out"] = "out", model_name: str | None = None) -> str | None:
    """Return the hook point of what a Hugging Face module such as `model.layers.3.mlp` reads or writes."""
    for ending, which in ((".output", "out"), (".input", "in")):
        if path.endswith(ending):
            path, io = path.removesuffix(ending), "in" if which == "in" else "out"
    found = BLOCK.search(path)
    if found is None:
        return None
    layer, rest = found.groups()
    site = (INPUTS if io == "in" else OUTPUTS).get(rest or "")
    if site is not None and NORMED.search(model_name or "") and not (rest or "").endswith("layernorm"):
        site = BEFORE_NORM.get(site, site)
    return None if site is None else f"blocks.{layer}.{site}"


def of_file(trail: str) -> tuple[str | None, str | None]:
    """Return language model and hook point of a file called Llama-3.1-8B-Instruct-SAE-l19, or two Nones."""
    found = FILE.search(trail)
    return (None, None) if found is None else (found[1], f"blocks.{int(found[2])}.hook_resid_post")


def in_text(text: str) -> str | None:
    """Return the hook point that a folder's or a submodule's name spells, as resid_post_layer_3 does."""
    if found := SITE.search(text):
        return f"blocks.{int(found[2])}.{SITES[found[1]]}"
    if found := LAYER_SITE.search(text):
        return f"blocks.{int(found[1])}.{SITES[found[2]]}"
    return None
