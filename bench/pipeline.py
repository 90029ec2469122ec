"""A whole run over its floor, on the same tokens, machine and dtype, in one process.

F is what any tool must pay: the language model's forward to the hook point, the encoder's matmul and the exact top k
by our best kernel (bench.floor). F0 leaves the top k out. A run is everything: reading contexts, forward, encoder,
statistics, examples, fidelity, weight facts, COPY into PostgreSQL, indexes and publication. Floor and run take turns
as long as a worker's, so that a busy machine slows both alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

from bench.floor import Floor
from bench.report import Clock, line

TOKENS = int(os.environ.get("BENCH_TOKENS", 2**22))  # more than the standard library has: all of it
WIDTHS = tuple(int(w) for w in os.environ.get("BENCH_WIDTHS", "4096,16384,65536").split(","))


def measure(folder: Path) -> Any:
    """Time a run of each width; the run of the first width, for the benchmarks of storage and pages."""
    from demo import ROOT
    from demo.corpus import documents
    from sae_backend import kept, store
    from sae_backend.registry import register_dataset, register_lm

    lm = register_lm("bench", str(ROOT / "model"))
    dataset = register_dataset("standard library", "bench", lm, documents(), 256, TOKENS)
    _forward(lm.source, "blocks.2.hook_resid_post", "float32", store.read_contexts(dataset, 0, 128))
    if kept.compute_dtype() != "float32":
        _forward(lm.source, "blocks.2.hook_resid_post", kept.compute_dtype(), store.read_contexts(dataset, 0, 256))
    runs = [_run(checkpoint(folder, width), lm, dataset) for width in WIDTHS]
    return runs[0]


def checkpoint(folder: Path, width: int) -> Path:
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
    from sae_backend.models import Run

    sae = imported(checkpoint, lm)
    _warm_up(sae, dataset)
    run = runs.create(sae, dataset, jobs.run_config())
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING, started_at=run.created_at)
    _time(run.pk, sae.d_sae)
    run.refresh_from_db()
    assert run.state == Run.State.LIVE, run.error
    return run


def imported(checkpoint: Path, lm: Any) -> Any:
    """The SAE of a checkpoint, as a worker imports it."""
    from sae_backend import jobs
    from sae_backend.models import SaeImport

    row = SaeImport.objects.create(name=checkpoint.name, source=str(checkpoint), lm=lm)
    jobs.import_sae(row.pk)
    row.refresh_from_db()
    assert row.sae is not None, row.error
    return row.sae


def _warm_up(sae: Any, dataset: Any) -> None:
    """Compile the kernels and load the model before anything is timed."""
    from sae_backend import jobs, kept, runs, store
    from sae_backend.models import Run, RunShard

    run = runs.create(sae, dataset, jobs.run_config() | {"shard_contexts": 16, "shard_latents": 64})
    RunShard.objects.filter(run=run, index__gt=0).delete()
    Run.objects.filter(pk=run.pk).update(state=Run.State.COMPUTING)
    jobs.compute_contexts(run.pk, 0)
    jobs.load_latents(run.pk, 0)
    kept.dtype_difference(run)
    kept.basis_by_layer(run)  # once a data set, whatever the number of runs
    runs.cancel(run.pk)
    store.drop_tables(run.pk)
    kept.forget()


def _time(run_id: int, d_sae: int) -> None:
    from sae_backend import claims, jobs
    from sae_backend.models import RunShard

    contexts, latents, publish, floor = Clock(), Clock(), Clock(), Floor(run_id)
    left = RunShard.objects.filter(run_id=run_id, kind="contexts", state=RunShard.State.TODO).order_by("index")
    while shard := left.first():
        turn: list[RunShard] = []
        with contexts():
            jobs.encode_all(run_id, _noted(claims.one_after_another(run_id, "contexts", shard.index, "bench"), turn))
        for shard in turn:
            floor.shard(shard)
    of_latents = RunShard.objects.filter(run_id=run_id, kind="latents").order_by("index")
    with latents():
        claimed = (claims.claim(run_id, s.kind, s.index, "bench") for s in of_latents)
        jobs.load_all(run_id, filter(None, claimed))
    with publish():
        jobs.publish(run_id)
    _report(d_sae, floor, contexts, latents, publish)


def _noted(shards: Iterable[Any], into: list[Any]) -> Iterator[Any]:
    for shard in shards:
        into.append(shard)
        yield shard


def _report(d_sae: int, floor: Floor, contexts: Clock, latents: Clock, publish: Clock) -> None:
    total = contexts.wall + latents.wall + publish.wall
    line(f"run_over_F_{d_sae}", total / floor.F.wall, "ratio of wall times")
    line(f"run_over_F0_{d_sae}", total / floor.F0.wall, "ratio of wall times")
    line(f"contexts_over_F_{d_sae}", contexts.wall / floor.F.wall, "ratio of wall times")
    cpu = contexts.cpu + latents.cpu + publish.cpu
    line(f"run_over_F_cpu_{d_sae}", cpu / floor.F.cpu, "ratio of CPU times, PostgreSQL's own not counted")
    plain = floor.plain.wall / floor.plain_tokens
    line(f"run_over_plain_F_{d_sae}", total / floor.tokens / plain, "ratio of wall times, F batch after batch")
    line(f"floor_plain_F_{d_sae}", plain * 1e6, "microseconds a token")
    for name, clock in (("F0", floor.F0), ("F", floor.F)):
        line(f"floor_{name}_{d_sae}", clock.wall / floor.tokens * 1e6, "microseconds a token")
    for name, clock in (("contexts", contexts), ("latents", latents), ("publish", publish)):
        line(f"run_{name}_{d_sae}", clock.wall, "s")
    line(f"tokens_per_second_{d_sae}", floor.tokens / total, "tokens/s, whole run")
    line(f"peak_memory_{d_sae}", getrusage(RUSAGE_SELF).ru_maxrss / 2**20, "GiB, of this process so far")


def _forward(source: str, hook_name: str, dtype: str, tokens: Any) -> None:
    """Our capture at a hook point over the plain Hugging Face forward of a model cut off behind that layer."""
    import torch

    from sae_backend.core import language_model

    lm = language_model.load(source, getattr(torch, dtype))
    cut = type(lm.hf).from_pretrained(source, dtype=lm.dtype, num_hidden_layers=lm.layer_of(hook_name) + 1).base_model
    ids = torch.from_numpy(tokens.astype("int64"))
    ours, plain = Clock(), Clock()
    with torch.no_grad():
        lm.capture(ids[:1], hook_name)  # boots the bridge and proves that both forwards agree
        cut(ids[:1], use_cache=False)
        for part in ids.split(16):
            with ours():
                lm.capture(part, hook_name)
            with plain():
                cut(part, use_cache=False)
    line(f"capture_over_hf_{dtype}", ours.wall / plain.wall, "ratio of wall times, forward to the hook point")
