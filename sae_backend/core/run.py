"""One pass of an SAE over a corpus: shards of contexts become sparse matrices, shards of latents become pages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sae_backend.core import fidelity
from sae_backend.core.activations import ActivationShard, StoredShard, by_latent, gather
from sae_backend.core.config import RunConfig
from sae_backend.core.decoder import Decoder
from sae_backend.core.encode import BlockEncoder, Firings
from sae_backend.core.examples import choose, strongest_tokens
from sae_backend.core.language_model import LM
from sae_backend.core.results import LatentShard
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.stats import histograms, latent_stats, sparks

Report = Callable[[int], None]  # tokens (or latents) done so far in this shard


class RunError(Exception):
    """A run that cannot go on, with a sentence that says what to do."""


class ContextPass:
    """Encodes contexts of one run; keeps the language model and the encoder ready between shards."""

    def __init__(self, sae: SparseAutoencoder, lm: LM, cfg: RunConfig, special: set[int]) -> None:
        self.sae, self.lm, self.cfg = sae, lm, cfg
        self.encoder = BlockEncoder(sae, getattr(torch, cfg.dtype))
        self.decoder_norm = sae.decoder_norm.cpu().numpy()
        self.special = np.array(sorted(special if not cfg.count_special else ()), np.int64)

    @torch.no_grad()
    def shard(self, tokens: npt.NDArray[np.uint32], lo: int, n_contexts: int, report: Report) -> ActivationShard:
        """Activations of contexts lo ≤ c < lo + len(tokens) out of n_contexts; tokens [n ctx_len]."""
        sums = fidelity.Sums()
        parts = []
        for a in range(0, len(tokens), self.cfg.batch_contexts):
            batch = tokens[a : a + self.cfg.batch_contexts]
            parts.append(self._batch(batch, a, lo, n_contexts, sums))
            report((a + len(batch)) * tokens.shape[1])
        token, latent, act = (np.concatenate(p) for p in zip(*parts, strict=True))
        indptr, token, act = by_latent(latent, token, act, self.sae.cfg.d_sae)
        return ActivationShard(lo, np.ascontiguousarray(tokens), indptr, token, act, asdict(sums))

    def _batch(
        self, batch: npt.NDArray[np.uint32], a: int, lo: int, n_contexts: int, sums: fidelity.Sums
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Counted tokens' firings: token within the shard, latent, canonical activation."""
        ids = torch.from_numpy(batch.astype(np.int64)).to(self.lm.device)
        counted = ~np.isin(batch, self.special)
        hook = self.sae.cfg.hook_name
        assert hook is not None
        hidden = self.lm.capture(ids, hook).flatten(0, 1)[torch.from_numpy(counted.reshape(-1))].float()
        firings = self.encoder(hidden)
        self._refuse_dense(firings)
        self._fidelity(sums, ids, counted, hidden, firings, lo + a, n_contexts)
        row, latent, act = self._canonical(firings)
        sums.add_l0(np.bincount(row, minlength=len(hidden)))
        place = (np.flatnonzero(counted) + a * batch.shape[1]).astype(np.uint32)
        return place[row], latent, act

    def _canonical(
        self, firings: Firings
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Row, latent and canonical activation of what fires; a latent without a direction writes nothing."""
        row = firings.rows()
        act = firings.act * self.decoder_norm[firings.latent]
        if firings.scale is not None:
            act *= firings.scale[row]
        writes = act > 0
        return row[writes], firings.latent[writes], act[writes]

    def _refuse_dense(self, firings: Firings) -> None:
        mean = len(firings.latent) / max(1, len(firings.indptr) - 1)
        if mean > self.cfg.max_l0:
            raise RunError(
                f"{mean:,.0f} of {self.sae.cfg.d_sae:,} latents fire on a token on average; more than "
                f"{self.cfg.max_l0:,} means that the checkpoint is read wrongly. Check the language model, the hook "
                "point, the input normalisation and the threshold, then import it again with what is right"
            )

    def _fidelity(
        self, sums: fidelity.Sums, ids: torch.Tensor, counted: npt.NDArray[np.bool_], hidden: torch.Tensor,
        firings: Firings, first: int, n_contexts: int,
    ) -> None:
        context = np.arange(first, first + len(ids))
        decoded = context % self.cfg.fidelity_every == 0
        if decoded.any():
            rows = np.flatnonzero((counted & decoded[:, None])[counted])
            x = hidden[torch.from_numpy(rows)]
            recon = self.sae.decode(firings.of(rows, self.sae), x)
            sums.add_reconstruction(self._target(ids, counted, decoded, x), recon)
        spliced = _evenly(context, n_contexts, self.cfg.ce_contexts)
        if spliced.any():
            mask = torch.from_numpy(counted[spliced]).to(ids.device)
            fidelity.add_cross_entropies(sums, self.lm, self.sae, ids[torch.from_numpy(spliced)], mask)

    def _target(
        self, ids: torch.Tensor, counted: npt.NDArray[np.bool_], decoded: npt.NDArray[np.bool_], x: torch.Tensor
    ) -> torch.Tensor:
        """What the SAE reconstructs: its input, or a transcoder's output hook point."""
        out = self.sae.cfg.hook_name_out
        if out is None:
            return x
        y = self.lm.capture(ids[torch.from_numpy(decoded)], out).flatten(0, 1).float()
        return y[torch.from_numpy(counted[decoded].reshape(-1))]


def _evenly(context: npt.NDArray[np.int64], n: int, wanted: int) -> npt.NDArray[np.bool_]:
    """Which of these contexts belong to `wanted` ones spread evenly over n."""
    if n <= wanted:
        return np.ones(len(context), bool)
    return (context * wanted) // n != ((context - 1) * wanted) // n


class LatentPass:
    """Turns the stored shards of a run into pages, latents lo ≤ i < hi at a time."""

    def __init__(self, paths: list[Path], decoder: Decoder, cfg: RunConfig) -> None:
        self.decoder, self.cfg = decoder, cfg
        self.shards = sorted((StoredShard(p) for p in paths), key=lambda s: s.lo)
        self.tokens = np.concatenate([s.tokens for s in self.shards])
        self.sums = fidelity.merged([s.sums for s in self.shards])
        firings = sum(np.diff(s.indptr) for s in self.shards)
        self.live = torch.from_numpy(np.asarray(firings) > 0).to(decoder.sae.device)

    def shard(self, lo: int, hi: int) -> LatentShard:
        """Statistics, examples and weight facts of latents lo ≤ i < hi."""
        rows = gather(self.shards, lo, hi, self.tokens.shape[1])
        examples = choose(rows, lo, self.tokens, self.cfg)
        facts = self.decoder.facts(lo, hi, self.live)
        return LatentShard(
            lo=lo,
            hi=hi,
            stats=latent_stats(rows, self.sums.tokens),
            decoder=facts.stats,
            strongest=[strongest_tokens(e, self.tokens) for e in examples],
            sparks=sparks(rows),
            examples=examples,
            histograms=histograms(rows),
            logits=facts.logits,
            neighbours=facts.neighbours,
        )
