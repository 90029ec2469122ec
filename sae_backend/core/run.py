"""One pass of an SAE over a corpus: shards of contexts become sparse matrices, shards of latents become pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from sae_backend.core import fidelity, k_curve
from sae_backend.core.activations import ActivationShard, Part, StoredShard, by_latent, gather
from sae_backend.core.cofiring import Cofiring
from sae_backend.core.config import RunConfig, every, watched_tokens
from sae_backend.core.decoder import Decoder
from sae_backend.core.encode import BlockEncoder, Firings
from sae_backend.core.examples import choose, strongest_tokens
from sae_backend.core.lanes import lanes
from sae_backend.core.language_model import LM
from sae_backend.core.margins import N_MISSES, Closest, Margins, Nearest
from sae_backend.core.results import LatentShard
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.shortage import is_shortage
from sae_backend.core.stats import histograms, latent_stats, sparks

PIECE_LATENTS, PIECE_FIRINGS = (128, 512), 4_000_000  # that one lane works on at once
Bools = npt.NDArray[np.bool_]
Report = Callable[[int], None]  # tokens (or latents) done so far in this shard
Begun = Callable[[], object]
Near = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint32]]  # of one context: margins [d_sae], and where


class RunError(Exception):
    """A run that cannot go on, with a sentence that says what to do."""


class ContextPass:
    """Encodes contexts of one run; keeps the language model and the encoder ready between shards."""

    def __init__(self, sae: SparseAutoencoder, lm: LM, cfg: RunConfig, special: set[int]) -> None:
        self.sae, self.lm, self.cfg = sae, lm, cfg
        self.encoder, self.margins = BlockEncoder(sae, getattr(torch, cfg.dtype)), Margins(sae)
        self.ks = k_curve.ks(sae.cfg)
        self.widest = self.encoder.with_k(self.ks[-1]) if self.ks else None
        self.special = np.array(sorted(special if not cfg.count_special else ()), np.int64)
        self.lanes = lanes(lm.device)
        self.size = cfg.batch_contexts  # halved for good when memory does not suffice

    def shard(
        self, tokens: npt.NDArray[np.uint32], lo: int, n_contexts: int, report: Report, begun: Begun = lambda: None
    ) -> ActivationShard:
        """Activations of contexts lo ≤ c < lo + len(tokens) out of n_contexts; tokens [n ctx_len].

        `begun` is called when the lanes have the last batch: another shard may then be begun.
        """
        while True:
            try:
                return self._shard(tokens, lo, n_contexts, report, begun)
            except (MemoryError, RuntimeError) as error:
                if not is_shortage(error):
                    raise
                self._take_less(error)

    def _shard(
        self, tokens: npt.NDArray[np.uint32], lo: int, n_contexts: int, report: Report, begun: Begun
    ) -> ActivationShard:
        parts, sums, done, size = [], [], 0, self.batch_size(len(tokens))
        watched = self._watched(np.arange(lo, lo + len(tokens)), n_contexts, tokens.shape[1])
        closest = Closest(self.sae.cfg.d_sae, min(N_MISSES, int(watched.sum())))
        for part, of_part, nearest, n in self.lanes.map(
            lambda a: self._batch(tokens[a : a + size], a, lo, n_contexts), range(0, len(tokens), size), begun
        ):
            parts.append(part)
            sums.append(of_part)
            for each in nearest:
                closest.add(*each)
            done += n
            report(done * tokens.shape[1])
        indptr, token, act = by_latent(parts, self.sae.cfg.d_sae)
        total = fidelity.merged([vars(s) for s in sums])
        sample = np.concatenate([p.sample_l0 for p in parts]), np.concatenate([p.sample_latent for p in parts])
        near = closest.margin, closest.token
        return ActivationShard(lo, np.ascontiguousarray(tokens), indptr, token, act, asdict(total), *sample, *near)

    def _watched(self, context: npt.NDArray[np.int64], n_contexts: int, ctx_len: int) -> Bools:
        """In which of these contexts every pre-activation is looked at."""
        most = watched_tokens(self.sae.cfg.d_sae)
        return context % every(n_contexts, ctx_len, 4 * self.cfg.sample_every, most) == 0

    def batch_size(self, n: int) -> int:
        """Contexts of a batch such that every lane has a few, out of n."""
        return max(1, min(self.size, -(-n // (2 * self.lanes.n))))

    def _take_less(self, error: BaseException) -> None:
        if self.size == 1:
            raise RunError(
                f"one context at a time does not fit into the memory of {self.lm.device}: {error}. Use a device with "
                "more memory, or a dataset of shorter contexts"
            ) from error
        self.size //= 2
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()

    def _batch(
        self, batch: npt.NDArray[np.uint32], a: int, lo: int, n_contexts: int
    ) -> tuple[Part, fidelity.Sums, list[Near], int]:
        """What fires in contexts of a shard, the first being number a of it, their sums, margins, and how many."""
        ids = torch.from_numpy(batch.astype(np.int64)).to(self.lm.device)
        counted = ~np.isin(batch, self.special)
        there = self.lm.capture(ids, str(self.sae.cfg.hook_name))
        at = np.flatnonzero(counted)
        hidden = there.flatten(0, 1).index_select(0, torch.from_numpy(at).to(there.device)).float()
        context = np.arange(lo + a, lo + a + len(batch))
        watched = self._watched(context, n_contexts, batch.shape[1]) & counted.any(1)
        firings = self.encoder(hidden, _rows_of(watched, counted).to(hidden.device) if watched.any() else None)
        self._refuse_dense(firings)
        place = (at + a * batch.shape[1]).astype(np.uint32)
        sampled = context % every(n_contexts, batch.shape[1], self.cfg.sample_every) == 0
        part = Part(firings, self.sae.decoder_norm, place, np.repeat(sampled, counted.sum(1)))
        nearest = list(self._nearest(firings, watched, counted, place)) if watched.any() else []
        sums = fidelity.Sums(watched=int(counted[watched].sum()))
        sums.add_l0(part.l0)
        decoded = every(n_contexts, batch.shape[1], self.cfg.fidelity_every)
        self._errors(sums, ids, counted, hidden, firings, context % decoded == 0)
        self._basis(sums, counted, hidden, context % (4 * decoded) == 0)
        if self.widest is not None:
            self._k_curve(sums, ids, counted, hidden, _evenly(context, n_contexts, self.cfg.k_contexts), self.widest)
        spliced = _evenly(context, n_contexts, self.cfg.ce_contexts)
        for c in np.flatnonzero(spliced).tolist():  # one at a time: logits are [pos d_vocab]
            self._cross_entropy(sums, ids[c : c + 1], counted, c, there[c : c + 1], hidden, firings)
        return part, sums, nearest, len(batch)

    def _nearest(
        self, firings: Firings, watched: Bools, counted: Bools, place: npt.NDArray[np.uint32]
    ) -> Iterator[Near]:
        """The largest margins in each of the contexts `watched` [batch], and their tokens' places in the shard."""
        assert firings.watched is not None
        rows, n = _rows_of(watched, counted), counted[watched].sum(1)
        on_device = rows.to(firings.act.device)
        acts, scale = firings.of(on_device, self.sae), firings.scale
        scale = None if scale is None else scale[on_device]
        found = self.margins.closest(firings.watched, acts, scale, n.tolist())
        for (margin, where), first in zip(found, np.cumsum(n) - n, strict=True):
            yield margin, place[rows.numpy()[first + where]]

    def _refuse_dense(self, firings: Firings) -> None:
        mean = len(firings.latent) / max(1, len(firings.indptr) - 1)
        if mean > self.cfg.max_l0:
            raise RunError(
                f"{mean:,.0f} of {self.sae.cfg.d_sae:,} latents fire on a token on average; more than "
                f"{self.cfg.max_l0:,} means that the checkpoint is read wrongly. Check the language model, the hook "
                "point, the input normalisation and the threshold, then import it again with what is right"
            )

    def _errors(
        self, sums: fidelity.Sums, ids: torch.Tensor, counted: Bools, hidden: torch.Tensor, firings: Firings,
        decoded: Bools,
    ) -> None:  # fmt: skip
        """Add MSE and FVU of the contexts `decoded` [batch]."""
        if not decoded.any():
            return
        rows = _rows_of(decoded, counted).to(hidden.device)
        x = hidden[rows]
        sums.add_reconstruction(self._target(ids, counted, decoded, x), self.sae.decode(firings.of(rows, self.sae), x))

    def _basis(self, sums: fidelity.Sums, counted: Bools, hidden: torch.Tensor, sampled: Bools) -> None:
        """Add the basis kurtosis of the contexts `sampled` [batch]."""
        if sampled.any():
            sums.add_basis(hidden[_rows_of(sampled, counted).to(hidden.device)])

    def _k_curve(
        self, sums: fidelity.Sums, ids: torch.Tensor, counted: Bools, hidden: torch.Tensor, sampled: Bools,
        widest: BlockEncoder,
    ) -> None:  # fmt: skip
        """Add the errors of the contexts `sampled` [batch] at every k, one at a time: no sum depends on the batch."""
        for c in np.flatnonzero(sampled):
            one = np.arange(len(sampled)) == c
            x = hidden[_rows_of(one, counted).to(hidden.device)]
            target = self._target(ids, counted, one, x)
            sums.k_curve = k_curve.added(sums.k_curve, k_curve.part(self.sae, x, target, widest(x), self.ks))

    def _target(self, ids: torch.Tensor, counted: Bools, decoded: Bools, x: torch.Tensor) -> torch.Tensor:
        """What the SAE reconstructs: its input, or a transcoder's output hook point."""
        out = self.sae.cfg.hook_name_out
        if out is None:
            return x
        y = self.lm.capture(ids[torch.from_numpy(decoded).to(ids.device)], out).flatten(0, 1).float()
        return y[torch.from_numpy(counted[decoded].reshape(-1)).to(y.device)]

    def _cross_entropy(
        self, sums: fidelity.Sums, ids: torch.Tensor, counted: Bools, c: int, there: torch.Tensor,
        hidden: torch.Tensor, firings: Firings,
    ) -> None:  # fmt: skip
        """Add the cross-entropies of one context: number c of the batch; ids, there [1 pos ..] are its own."""
        first, n = int(counted[:c].sum()), int(counted[c].sum())
        rows = torch.arange(first, first + n, device=hidden.device)
        clean = there if self.sae.cfg.hook_name_out is None else self.lm.capture(ids, self.sae.cfg.hook_name_out)
        mask = torch.from_numpy(counted[c : c + 1]).to(ids.device)
        recon = clean.new_zeros(clean.shape)
        recon[mask] = self.sae.decode(firings.of(rows, self.sae), hidden[rows]).to(clean.dtype)
        hook_name = self.sae.cfg.hook_name_out or str(self.sae.cfg.hook_name)
        fidelity.add_cross_entropies(sums, self.lm, hook_name, ids, mask, clean, recon)


def _rows_of(contexts: Bools, counted: Bools) -> torch.Tensor:
    """Rows of the counted tokens of some contexts [batch], among all counted tokens [batch pos]."""
    return torch.from_numpy(np.flatnonzero((counted & contexts[:, None])[counted]))


def _evenly(context: npt.NDArray[np.int64], n: int, wanted: int) -> Bools:
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
        self.live = torch.from_numpy(self._live()).to(decoder.sae.device)
        self.margins = Nearest.read(self.shards, self.tokens.shape[1], Margins(decoder.sae).gain())
        self.cofiring = Cofiring.read(self.shards, decoder.sae.cfg.d_sae, self.sums.tokens)
        self.products = decoder.directions.products(self.live)
        self.lanes = lanes(torch.device("cpu"))  # most of it is the host's work, whatever holds the weights

    def _live(self) -> Bools:
        live = np.zeros(self.decoder.sae.cfg.d_sae, bool)
        for shard in self.shards:
            live |= shard.counts(0, len(live)) > 0
        return live

    def pieces(self, lo: int, hi: int, begun: Begun = lambda: None) -> Iterator[LatentShard]:
        """Latents lo ≤ i < hi in ascending pieces, computed ahead of the one that is asked for.

        `begun` is called when the lanes have the last one.
        """
        return self.lanes.map(lambda piece: self.shard(*piece), self._cut(lo, hi), begun)

    def sample(self) -> dict[str, int]:
        """Counted tokens that margins, and what fires together, rest on, for the run's summary."""
        cofiring = self.cofiring.tokens if self.cofiring else 0
        return {"margin": self.sums.watched if self.margins else 0, "cofiring": cofiring}

    def _cut(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """Pieces of a bounded number of latents and, but for one latent that has more, of firings."""
        firings = np.cumsum(sum(s.counts(lo, hi) for s in self.shards))
        most = max(PIECE_LATENTS[0], min(PIECE_LATENTS[1], (hi - lo) // 4))
        a = 0
        while a < hi - lo:
            enough = int(np.searchsorted(firings, (firings[a - 1] if a else 0) + PIECE_FIRINGS, "right"))
            b = min(hi - lo, a + most, max(a + 1, enough))
            yield lo + a, lo + b
            a = b

    def shard(self, lo: int, hi: int) -> LatentShard:
        """Statistics, examples and weight facts of latents lo ≤ i < hi."""
        rows = gather(self.shards, lo, hi, self.tokens.shape[1])
        examples = choose(rows, lo, self.tokens, self.cfg)
        facts = self.decoder.facts(lo, hi, self.live, self.products)
        dead = np.diff(rows.indptr) == 0
        return LatentShard(
            lo=lo,
            hi=hi,
            stats=latent_stats(rows, self.sums.tokens, self.margins.largest(lo, hi) if self.margins else None),
            decoder=facts.stats,
            strongest=strongest_tokens(examples, self.tokens),
            sparks=sparks(rows),
            examples=examples,
            histograms=histograms(rows),
            logits=facts.logits,
            neighbours=facts.neighbours,
            misses=self.margins.misses(lo, hi, dead) if self.margins else None,
            cofiring=self.cofiring.of(lo, hi, facts.neighbours) if self.cofiring else None,
            enrichment=facts.enrichment,
        )
