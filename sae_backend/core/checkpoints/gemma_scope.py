"""Gemma Scope: <repository>/layer_L/width_Wk/average_l0_N/params.npz, and the same tensors in any .npz.

acts = relu(pre) where pre > threshold, pre = x @ W_enc + b_enc; recon = acts @ W_dec + b_dec. Keys and shapes of a
transcoder are those of an SAE; the hook point is told by the path alone.
"""

from __future__ import annotations

import re

from . import settings
from .assembling import Draft, tensors_of
from .files import Source

KEYS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
OLD = {"w_enc": "W_enc", "w_dec": "W_dec"}
LAYER = re.compile(r"(?:^|/)layer_(\d+)(?:/|_|$)")
REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
SITES = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z", "transcoders": "ln2.hook_normalized"}
EMBEDDING = "hook_embed"
KIND = "Gemma Scope's SAEs and transcoders have the same tensors: an SAE is assumed."
READS = (
    "Transcoders are read at ln2.hook_normalized, before the norm's gain. If the reconstruction is bad, "
    "try mlp.hook_in of the same block, which is behind it."
)


def recognises(source: Source) -> bool:
    """Say whether a NumPy archive has the five arrays."""
    return not source.is_torch and {OLD.get(name, name) for name in source.keys} >= KEYS and _is_npz(source)


def _is_npz(source: Source) -> bool:
    return source.files.kinds[source.name] == "npz"


def draft(source: Source) -> Draft:
    """Return what the file and its path say."""
    weights = {OLD.get(name, name): value for name, value in source.weights.items()}
    found = Draft("gemma_scope", "jumprelu", tensors_of(weights, KEYS, set(), "a Gemma Scope SAE"))
    repository, layer = REPOSITORY.search(source.trail), LAYER.search(source.trail)
    if repository is not None:
        found.model_name = f"google/gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "")
        found.transcoder = repository[3] == "transcoders"
        found.hook_name = f"blocks.{int(layer[1])}.{SITES[repository[3]]}" if layer else None
    else:
        found.ask("transcoder", KIND, default=False)
    if found.transcoder and layer:
        found.hook_name_out = f"blocks.{int(layer[1])}.hook_mlp_out"
        found.notes.append(READS)
    _scale_embedding(found, source)
    found.metadata = settings.plain({"context_size": 1024, "dataset_path": "monology/pile-uncopyrighted"})
    return found


def _scale_embedding(found: Draft, source: Source) -> None:
    """The embeddings' SAE reads them as they are stored; at hook_embed they are already times sqrt(d)."""
    if "/embedding/" in f"/{source.trail}":
        found.hook_name = EMBEDDING
    if (source.said.hook_name or found.hook_name) == EMBEDDING:
        d_in = found.tensors["b_dec"].numel()
        found.input_scale, found.output_scale = d_in**-0.5, d_in**0.5
