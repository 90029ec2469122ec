"""The least that a run can cost: forward to the hook point, encoder matmul, exact top k, by the best means at hand.

Measured twice. `plain` is what anyone gets who hands torch its batches: one after another, all cores in the model's
forward, then all cores in the encoder's rows. `F` (and `F0`, without the top k) has whole batches side by side, one a
core, as a run has them: what a run costs beside that is all that we add.
"""

from __future__ import annotations

import time
from typing import Any

from bench.report import Clock

PLAIN = 32  # contexts of a batch: the quickest of 8 … 128


class Floor:
    """Takes shards of contexts of one run and adds up what their floor costs."""

    def __init__(self, run_id: int) -> None:
        from sae_backend import kept
        from sae_backend.core.encode import ROWS

        self.rows = ROWS
        self.pass_ = kept.context_pass(run_id)
        self.sae: Any = self.pass_.sae
        self.lm, self.encoder, self.lanes = self.pass_.lm, self.pass_.encoder, self.pass_.lanes
        self.F0, self.F, self.plain = Clock(), Clock(), Clock()
        self.tokens = self.plain_tokens = 0
        self.shards = 0

    def shard(self, shard: Any) -> None:
        from sae_backend import store

        tokens = store.read_contexts(shard.run.dataset, shard.lo, shard.hi)
        self._in_lanes(self.F0, tokens, top_k=False)
        self._in_lanes(self.F, tokens, top_k=True)
        if self.shards % 4 == 0:
            self._plain(tokens[:512])
        self.tokens += tokens.size
        self.shards += 1

    def _in_lanes(self, clock: Clock, tokens: Any, top_k: bool) -> None:
        """Normalising the SAE's input is no part of the floor: its time is taken off again."""
        size = self.pass_.batch_size(len(tokens))
        parts = [tokens[a : a + size] for a in range(0, len(tokens), size)]
        with clock():
            spent = list(self.lanes.map(lambda part: self._batch(part, top_k), parts))
        clock.wall -= sum(spent) / self.lanes.n
        clock.cpu -= sum(spent)

    def _plain(self, tokens: Any) -> None:
        with self.plain():
            spent = [self._alone(tokens[a : a + PLAIN]) for a in range(0, len(tokens), PLAIN)]
        self.plain.wall -= sum(spent)
        self.plain_tokens += tokens.size

    def _alone(self, tokens: Any) -> float:
        """As `_batch`, with all cores in each step."""
        import torch

        with torch.no_grad():
            x, spent = self._input(tokens)
            list(self.lanes.map(lambda rows: self._encode(rows, top_k=True), x.split(self.rows)))
        return spent

    def _batch(self, tokens: Any, top_k: bool) -> float:
        """Seconds that normalising took."""
        x, spent = self._input(tokens)
        for rows in x.split(self.rows):
            self._encode(rows, top_k)
        return spent

    def _input(self, tokens: Any) -> tuple[Any, float]:
        """What the encoder takes, and the seconds that normalising it took."""
        import torch

        hidden = self.lm.capture(torch.from_numpy(tokens.astype("int64")).to(self.lm.device), self.sae.cfg.hook_name)
        begun = time.perf_counter()
        x = self.sae.normalise(hidden.flatten(0, 1).float()).x.to(self.encoder.dtype)
        return x, time.perf_counter() - begun

    def _encode(self, x: Any, top_k: bool) -> None:
        import torch

        if self.lm.device.type != "cpu":
            _, W, b = self.encoder.blocks[0]
            pre_acts = torch.addmm(b, x, W)
            if top_k:
                from sae_backend.core.encode import bounded_topk

                bounded_topk(pre_acts, self.sae.cfg.k)
            torch.cuda.synchronize()
            return
        running = self.encoder.running(len(x))
        for column, W, b in self.encoder.blocks:
            pre_acts = torch.addmm(b, x, W)
            if top_k:
                running.add(pre_acts, column)
        if top_k:
            running.chosen()
