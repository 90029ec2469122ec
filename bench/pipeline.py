"""A whole run over its floor, on the same tokens, machine and dtype, in one process.

F is what any tool must pay: the language model's forward to the hook point, the encoder's matmul and the exact top k
by our best kernel. F0 leaves the top k out. A run is everything: reading contexts, forward, encoder, statistics,
examples, fidelity, weight facts, COPY into PostgreSQL, indexes and publication. Floor and run take turns, shard by
shard, so that a busy machine slows both alike.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.report import Clock, line

TOKENS = int(os.environ.get("BENCH_TOKENS", 524_288))
WIDTHS = tuple(int(w) for w in os.environ.get("BENCH_WIDTHS", "4096,16384").split(","))


def measure(folder: Path) -> Any:
    """Time a run of each width; the run of the first width, for the benchmarks of storage and pages."""
    from demo import ROOT
    from demo.corpus import documents
    from sae_backend.registry import register_dataset, register_lm

    lm = register_lm("bench", str(ROOT / "model"))
    dataset = register_dataset("standard library", "bench", lm, documents(), 256, TOKENS)
    runs = [_run(_checkpoint(folder, width), lm, dataset) for width in WIDTHS]
    return runs[0]


def _checkpoint(folder: Path, width: int) -> Path:
    """The demo's SAE, or a random one of its shape in another width: speed does not depend on what it has learned."""
    from demo import SAES

    trained = SAES / "resid_post_2_topk32_4096"
    if width == 4096:
        return trained
    import torch

    from sae_backend.core.checkpoints import load

    sae = load(trained)
    torch.manual_seed(width)
    W_dec = torch.nn.functional.normalize(torch.randn(width, sae.cfg.d_in), dim=1)
    cfg = replace(sae.cfg, d_sae=width)
    wide = replace(sae, cfg=cfg, W_enc=W_dec.T.contiguous(), b_enc=torch.zeros(width), W_dec=W_dec)
    return _save(wide, folder / f"topk32_{width}")


def _save(sae: Any, path: Path) -> Path:
    """As a SAELens folder."""
    import json

    from safetensors.torch import save_file

    path.mkdir()
    save_file({k: t.contiguous() for k, t in sae.tensors().items()}, path / "sae_weights.safetensors")
    cfg = {
        "architecture": "topk", "k": sae.cfg.k, "d_in": sae.cfg.d_in, "d_sae": sae.cfg.d_sae, "dtype": "float32",
        "apply_b_dec_to_input": True, "normalize_activations": "layer_norm", "reshape_activations": "none",
        "metadata": {"hook_name": sae.cfg.hook_name},
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps(cfg))
    return path


def _run(checkpoint: Path, lm: Any, dataset: Any) -> Any:
    from sae_backend import jobs, runs
    from sae_backend.models import Run, SaeImport

    imported = SaeImport.objects.create(name=checkpoint.name, source=str(checkpoint), lm=lm)
    jobs.import_sae(imported.pk)
    imported.refresh_from_db()
    assert imported.sae is not None, imported.error
    _warm_up(imported.sae, dataset)
    run = runs.create(imported.sae, dataset, jobs.run_config())
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING, started_at=run.created_at)
    _time(run.pk, imported.sae.d_sae)
    run.refresh_from_db()
    assert run.state == Run.State.LIVE, run.error
    return run


def _warm_up(sae: Any, dataset: Any) -> None:
    """Compile the kernels and load the model before anything is timed."""
    from sae_backend import jobs, runs, store
    from sae_backend.models import Run, RunShard

    run = runs.create(sae, dataset, jobs.run_config() | {"shard_contexts": 16, "shard_latents": 64})
    RunShard.objects.filter(run=run, index__gt=0).delete()
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING)
    jobs.compute_contexts(run.pk, 0)
    jobs.load_latents(run.pk, 0)
    runs.cancel(run.pk)
    store.drop_tables(run.pk)
    jobs.forget()


def _time(run_id: int, d_sae: int) -> None:
    from sae_backend import jobs
    from sae_backend.models import RunShard

    contexts, latents, publish, floor = Clock(), Clock(), Clock(), Floor(run_id)
    shards = RunShard.objects.filter(run_id=run_id, kind="contexts").order_by("index")
    for shard in shards:
        floor.shard(shard)
        with contexts():
            jobs.compute_contexts(run_id, shard.index)
    for index in RunShard.objects.filter(run_id=run_id, kind="latents").values_list("index", flat=True):
        with latents():
            jobs.load_latents(run_id, index)
    with publish():
        jobs.publish(run_id)
    _report(d_sae, floor, contexts, latents, publish)


def _report(d_sae: int, floor: Floor, contexts: Clock, latents: Clock, publish: Clock) -> None:
    F0 = floor.forward.wall + floor.matmul.wall
    F = F0 + floor.top_k.wall
    total = contexts.wall + latents.wall + publish.wall
    line(f"run_over_F_{d_sae}", total / F, "ratio of wall times")
    line(f"run_over_F0_{d_sae}", total / F0, "ratio of wall times")
    line(f"contexts_over_F_{d_sae}", contexts.wall / F, "ratio of wall times")
    cpu = (contexts.cpu + latents.cpu + publish.cpu) / (floor.forward.cpu + floor.matmul.cpu + floor.top_k.cpu)
    line(f"run_over_F_cpu_{d_sae}", cpu, "ratio of CPU times, PostgreSQL's own not counted")
    for name, clock in (("forward", floor.forward), ("matmul", floor.matmul), ("top_k", floor.top_k)):
        line(f"floor_{name}_{d_sae}", clock.wall / floor.tokens * 1e6, "microseconds a token")
    for name, clock in (("contexts", contexts), ("latents", latents), ("publish", publish)):
        line(f"run_{name}_{d_sae}", clock.wall, "s")
    line(f"tokens_per_second_{d_sae}", floor.tokens / total, "tokens/s, whole run")


class Floor:
    """The least that the same shard of contexts can cost."""

    def __init__(self, run_id: int) -> None:
        import torch

        from sae_backend import jobs

        self.pass_ = jobs.context_pass(run_id)
        self.forward, self.matmul, self.top_k = Clock(), Clock(), Clock()
        self.tokens = 0
        self.sae: Any = self.pass_.sae
        self.lm = self.pass_.lm
        self.torch = torch

    def shard(self, shard: Any) -> None:
        from sae_backend import store

        tokens = store.read_contexts(shard.run.dataset, shard.lo, shard.hi)
        size = self.pass_.cfg.batch_contexts
        for a in range(0, len(tokens), size):
            ids = self.torch.from_numpy(tokens[a : a + size].astype("int64"))
            with self.forward():
                hidden = self.lm.capture(ids, self.sae.cfg.hook_name)
            self._encode(hidden.flatten(0, 1))
            self.tokens += ids.numel()

    def _encode(self, hidden: Any) -> None:
        """The encoder's blocks as a run multiplies them, with a clock on either side of the top k."""
        from sae_backend.core.encode import ROWS, RunningTopK

        encoder = self.pass_.encoder
        x = self.sae.normalise(hidden.float()).x.to(encoder.dtype)
        for a in range(0, len(x), ROWS):
            rows = x[a : a + ROWS]
            top = RunningTopK(len(rows), self.sae.cfg.k, encoder.dtype)
            for column, W, b in encoder.blocks:
                with self.matmul():
                    pre = self.torch.addmm(b, rows, W)
                with self.top_k():
                    top.add(pre, column)
            with self.top_k():
                top.chosen()
