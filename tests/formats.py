"""The checkpoints under tests/fixtures: which are read, which are refused, and the numbers of their libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = "expected.npz"
CROSSCODER = "Give an SAE or transcoder of a single hook point"
TEMPORAL = "latents depend on the whole context, not on one token"
REFUSED = {
    "crosscoder_ckkissane/acausal_2models": CROSSCODER,
    "crosscoder_dictionary_learning/batchtopk_hub": CROSSCODER,
    "crosscoder_dictionary_learning/batchtopk_pt": CROSSCODER,
    "crosscoder_dictionary_learning/relu_hub": CROSSCODER,
    "crosscoder_dictionary_learning/relu_pt": CROSSCODER,
    "lm_saes/crosscoder": CROSSCODER,
    "saelens/matching_pursuit": "it has no encoder: its latents are chosen one after another",
    "saelens/temporal": TEMPORAL,
    "saelens_legacy/sae_training_2024-03_pkl": "can run code when read; save the weights as safetensors instead",
    "temporal_sae/temporal": TEMPORAL,
}
"""A part of the sentence that says why and what to do."""
ANSWERS: dict[str, dict[str, Any]] = {
    "openai/topk_no_layernorm_ambiguous": {"input_norm": "none"},
    "openai/train_py_fastautoencoder": {"k": 16},
    "qwen_scope/topk": {"k": 16},
}
"""What changes the result and no file says."""
INFERENCE = {
    "saelens/train_batchtopk_rescale_training_ckpt": "saelens/train_matryoshka_inference",
    "saelens/train_batchtopk_training_ckpt": "saelens/train_batchtopk_inference",
    "saelens/train_matryoshka_training_ckpt": "saelens/train_matryoshka_inference",
}
"""What the library exports of the same weights: its training class ranks a whole batch, and no batch is a page's."""
HALF = {"saelens/standard_bf16", "sparsify/topk_bf16"}
"""Their libraries compute in bfloat16; other formats in bfloat16 are widened by theirs too."""


def checkpoints() -> set[str]:
    """The fixtures that are no hostile or damaged files, as format/name."""
    folders = {path.relative_to(FIXTURES).as_posix() for path in FIXTURES.glob("*/*") if path.is_dir()}
    return {name for name in folders if not name.startswith("bad/")}


SUPPORTED = sorted(checkpoints() - REFUSED.keys())


def files_of(name: str) -> list[Path]:
    """The files that the library wrote."""
    return [path for path in sorted((FIXTURES / name).rglob("*")) if path.is_file() and path.name != EXPECTED]


def arrays(name: str) -> dict[str, Tensor]:
    """What the library computed: acts [32 d_sae] and recon of x [32 d_in], and variants of them."""
    with np.load(FIXTURES / name / EXPECTED) as found:
        return {key: torch.from_numpy(found[key]) for key in found}


def expected(name: str) -> dict[str, Tensor]:
    """The library's x, acts and recon, the latents laid out and scaled as docs/formats.md says they are shown."""
    found = arrays(INFERENCE.get(name, name))
    if name == "saelens/abstopk":  # of two signs
        found["acts"] = torch.cat([found["acts"].relu(), (-found["acts"]).relu()], 1)
    if name == "dictionary_learning/standard_no_config":  # the class alone; its library's loader moves the norms
        decoder = torch.load(FIXTURES / name / "ae.pt", weights_only=True)["decoder.weight"]
        found["acts"] = found["acts"] * decoder.norm(dim=0)
    if name == "gemma_scope/embedding":  # SAELens' converter scales all but b_dec, Gemma whole embeddings
        found["recon"] = found["recon_unscaled"] * found["x"].shape[1] ** 0.5
    return found
