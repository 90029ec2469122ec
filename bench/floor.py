"""The least that a run can cost: forward to the hook point, encoder matmul, exact top k, by the best means at hand.

Measured as a run is: batches side by side on every core. `threads` is the same work done batch after batch with every
core in each matmul, to show that the floor is not raised by the arrangement it is measured in.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Any

from bench.report import Clock


class Floor:
    """Takes shards of contexts of one run and adds up what their floor costs."""

    def __init__(self, run_id: int) -> None:
        from sae_backend import kept

        self.pass_ = kept.context_pass(run_id)
        self.sae: Any = self.pass_.sae
        self.lm, self.encoder, self.lanes = self.pass_.lm, self.pass_.encoder, self.pass_.lanes
        self.F0, self.F, self.threads = Clock(), Clock(), Clock()
        self.tokens = self.threads_tokens = 0
        self.shards = 0

    def shard(self, shard: Any) -> None:
        from sae_backend import store

        tokens = store.read_contexts(shard.run.dataset, shard.lo, shard.hi)
        self._in_lanes(self.F0, tokens, top_k=False)
        self._in_lanes(self.F, tokens, top_k=True)
        if self.shards % 4 == 0:
            some = tokens[:512]
            with self.threads():
                spent = [self._batch(some[a : a + 16], top_k=True) for a in range(0, len(some), 16)]
            self.threads.wall -= sum(spent)
            self.threads_tokens += some.size
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

    def _batch(self, tokens: Any, top_k: bool) -> float:
        """Seconds that normalising took."""
        import torch

        from sae_backend.core.encode import ROWS

        hidden = self.lm.capture(torch.from_numpy(tokens.astype("int64")).to(self.lm.device), self.sae.cfg.hook_name)
        begun = time.perf_counter()
        x = self.sae.normalise(hidden.flatten(0, 1).float()).x.to(self.encoder.dtype)
        spent = time.perf_counter() - begun
        with torch.no_grad() if x.requires_grad else nullcontext():
            for rows in x.split(ROWS):
                self._encode(rows, top_k)
        return spent

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
