"""delphi on one job: python -m bench.peers.delphi JOB, in an environment that has eai-delphi.

Its cache, then its constructor and sampler over every latent, which is what it does before it asks a language model.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from delphi.config import CacheConfig, ConstructorConfig, SamplerConfig
from delphi.latents import LatentCache, LatentDataset
from delphi.latents.collect_activations import collect_activations
from delphi.sparse_coders.load_sparsify import sae_dense_latents
from safetensors.torch import load_file
from sparsify import SparseCoder, SparseCoderConfig
from transformers import AutoModel, AutoTokenizer

from bench.peers import agreement
from bench.peers.job import Job, contexts_at_once, cpu

HOOK = "h.2"  # the module that writes blocks.2.hook_resid_post


class Normalised:
    """sparsify's coder behind the input normalisation of the SAE, which sparsify does not have."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        weights = {k: v.to(dtype) for k, v in load_file(folder / "sae_weights.safetensors").items()}
        self.num_latents, d_in = weights["W_dec"].shape
        cfg = SparseCoderConfig(num_latents=self.num_latents, k=32)
        self.coder = SparseCoder(d_in, cfg, dtype=dtype).requires_grad_(False)
        self.coder.encoder.weight.copy_(weights["W_enc"].T)
        self.coder.encoder.bias.copy_(weights["b_enc"])
        self.coder.b_dec.copy_(weights["b_dec"])

    def encode(self, x: torch.Tensor) -> Any:
        x = x - x.mean(dim=-1, keepdim=True)
        return self.coder.encode(x / (x.std(dim=-1, keepdim=True) + 1e-5))


class Peer:
    def __init__(self, job: Job, dtype: str) -> None:
        self.job, self.folder = job, job.folder / dtype
        self.tokenizer = AutoTokenizer.from_pretrained(job.lm, trust_remote_code=False)
        self.lm = AutoModel.from_pretrained(job.lm, dtype=getattr(torch, dtype), trust_remote_code=False)
        sae = Normalised(job.sae, self.lm.dtype)
        self.encode = {HOOK: partial(sae_dense_latents, sae=sae)}
        self.at_once = contexts_at_once(job, self.lm.config.n_positions, sae.num_latents)

    def activations(self, tokens: Any) -> Any:
        with collect_activations(self.lm, [HOOK]) as hidden:
            self.lm(tokens)
        return self.encode[HOOK](hidden[HOOK]).flatten(0, 1)

    def cache(self, tokens: Any, folder: Path) -> None:
        """Activations on disk, as `populate_cache` of delphi's command does, without its optional statistics."""
        cache = LatentCache(self.lm, self.encode, batch_size=self.at_once)
        cache.run(tokens.numel(), tokens)
        cfg = CacheConfig(batch_size=self.at_once, cache_ctx_len=tokens.shape[1], n_tokens=tokens.numel())
        cache.save_splits(cfg.n_splits, folder)
        cache.save_config(folder, cfg, str(self.job.lm))

    def construct(self, folder: Path, at_least: int) -> int:
        """Examples and samples of them, as `process_cache` of delphi's command asks for; of how many latents."""
        constructor = ConstructorConfig(min_examples=at_least)
        dataset = LatentDataset(folder, SamplerConfig(), constructor, self.tokenizer, modules=[HOOK])
        return sum(1 for _ in dataset)


def main() -> None:
    job = Job.read(sys.argv[1])
    with torch.no_grad():
        theirs = Peer(job, "float32").activations(torch.from_numpy(agreement.sample(job.tokens)))
        figures = agreement.difference(agreement.load(job.reference), theirs.numpy())
        tokens = torch.from_numpy(np.load(job.tokens).astype(np.int64))
        cached = {dtype: _cached(Peer(job, dtype), tokens) for dtype in job.dtypes}
        figures |= _constructed(Peer(job, job.dtypes[0]), "every", 1)
        figures |= _constructed(Peer(job, job.dtypes[0]), "frequent", ConstructorConfig().min_examples)
        job.done(figures | {"cache": cached})


def _cached(peer: Peer, tokens: Any) -> float:
    """CPU seconds of the cache, once a short one has warmed up what is slow the first time."""
    peer.cache(tokens[: peer.at_once], peer.folder / "warm-up")
    begun = cpu()
    peer.cache(tokens, peer.folder / "cache")
    return cpu() - begun


def _constructed(peer: Peer, name: str, at_least: int) -> dict[str, Any]:
    """CPU seconds of examples for latents that fire in so many windows, and how many those are."""
    begun = cpu()
    latents = peer.construct(peer.folder / "cache", at_least)
    return {f"constructor_{name}": cpu() - begun, f"latents_{name}": latents}


if __name__ == "__main__":
    main()
