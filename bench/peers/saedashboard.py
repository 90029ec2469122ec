"""SAEDashboard on one job: python -m bench.peers.saedashboard JOB, in an environment that has sae-dashboard.

Its Neuronpedia runner's loop over batches of latents, with our tokens in place of a dataset from the hub: same layout,
same configuration, same JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_dashboard.components_config import (
    ActsHistogramConfig,
    Column,
    FeatureTablesConfig,
    LogitsHistogramConfig,
    LogitsTableConfig,
    SequencesConfig,
)
from sae_dashboard.layout import SaeVisLayoutConfig
from sae_dashboard.neuronpedia.neuronpedia_converter import NeuronpediaConverter
from sae_dashboard.neuronpedia.neuronpedia_runner import NeuronpediaRunner
from sae_dashboard.neuronpedia.neuronpedia_runner_config import NeuronpediaRunnerConfig
from sae_dashboard.sae_vis_data import SaeVisConfig
from sae_dashboard.sae_vis_runner import SaeVisRunner
from sae_lens import SAE, HookedSAETransformer
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
from transformers import AutoTokenizer

from bench.peers import agreement
from bench.peers.job import BATCH, Job, contexts_at_once, cpu


class Peer:
    def __init__(self, job: Job, dtype: str) -> None:
        self.job, self.dtype, self.folder = job, dtype, job.folder / dtype
        self.lm = _language_model(str(job.lm), getattr(torch, dtype))
        self.sae: Any = SAE.load_from_disk(job.sae, device="cpu", dtype=dtype)
        self.sae.fold_W_dec_norm = lambda: None  # the rows have length 1; for topk it refuses to see that
        self.at_once = contexts_at_once(job, self.lm.cfg.n_ctx, self.sae.cfg.d_sae)
        self.hook_name = self.sae.cfg.metadata.hook_name
        vocabulary = NeuronpediaRunner.get_vocab_dict
        self.strings = vocabulary(type("Runner", (), {"model": self.lm})())  # type: ignore[arg-type]

    def activations(self, tokens: Any) -> Any:
        _, cache = self.lm.run_with_cache(tokens, names_filter=[self.hook_name])
        return self.sae.encode(cache[self.hook_name]).flatten(0, 1)

    def batch(self, tokens: Any, index: int, cache: Path) -> None:
        """One batch of latents, to its file of JSON."""
        latents = list(range(index * BATCH, (index + 1) * BATCH))
        data = SaeVisRunner(self._config(latents, cache)).run(self.sae, self.lm, tokens)
        written = NeuronpediaConverter.convert_to_np_json(self.lm, data, self._export(len(tokens)), self.strings)
        (self.folder / f"batch-{index}.json").write_text(written)

    def _config(self, latents: list[int], cache: Path) -> SaeVisConfig:
        tokenizer: Any = self.lm.tokenizer
        return SaeVisConfig(
            hook_point=self.hook_name, features=latents, minibatch_size_features=BATCH, dtype=self.dtype,
            minibatch_size_tokens=self.at_once, device="cpu", feature_centric_layout=_layout(), cache_dir=cache,
            ignore_tokens={tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id},
        )  # fmt: skip

    def _export(self, n: int) -> NeuronpediaRunnerConfig:
        return NeuronpediaRunnerConfig("bench", str(self.job.sae), "", model_id="bench", layer=2, n_prompts_total=n)


def _language_model(folder: str, dtype: torch.dtype) -> HookedSAETransformer:
    """What from_pretrained_no_processing does; that itself takes only names that it knows."""
    cfg = get_pretrained_model_config(folder, device="cpu", dtype=dtype)
    lm = HookedSAETransformer(cfg, AutoTokenizer.from_pretrained(folder, trust_remote_code=False))
    plain = dict.fromkeys(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False)
    lm.load_and_process_state_dict(get_pretrained_state_dict(folder, cfg, dtype=dtype), **plain)
    return lm


def _layout() -> SaeVisLayoutConfig:
    sequences = SequencesConfig(
        stack_mode="stack-all", buffer=None, compute_buffer=True,  # type: ignore[arg-type]
        n_quantiles=5, top_acts_group_size=20, quantile_group_size=5,
    )  # fmt: skip
    parts = (ActsHistogramConfig(), LogitsHistogramConfig(), LogitsTableConfig(), FeatureTablesConfig(n_rows=3))
    return SaeVisLayoutConfig(columns=[Column(sequences, *parts)])


def main() -> None:
    job = Job.read(sys.argv[1])
    with torch.no_grad():
        theirs = Peer(job, "float32").activations(torch.from_numpy(agreement.sample(job.tokens)))
        figures = agreement.difference(agreement.load(job.reference), theirs.numpy())
        tokens = torch.from_numpy(np.load(job.tokens).astype(np.int64))
        job.done(figures | {"spent": {dtype: _spent(Peer(job, dtype), tokens) for dtype in job.dtypes}})


def _spent(peer: Peer, tokens: Any) -> list[float]:
    """CPU seconds of each batch of latents; the first also runs the language model and caches its residuals."""
    peer.batch(tokens[: peer.at_once], 0, peer.folder / "warm-up")
    spent = []
    for index in range(peer.job.batches or peer.sae.cfg.d_sae // BATCH):
        begun = cpu()
        peer.batch(tokens, index, peer.folder / "cache")
        spent.append(cpu() - begun)
    return spent


if __name__ == "__main__":
    main()
