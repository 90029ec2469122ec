"""What a worker loads once and keeps: language models, SAEs, and the run at hand."""

from __future__ import annotations

import gc
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from django.conf import settings

from sae_backend import memory, packing, spool, storage, store
from sae_backend.core import checkpoints, language_model, layers, precision
from sae_backend.core.config import RunConfig
from sae_backend.core.decoder import Decoder
from sae_backend.core.language_model import LM, LanguageModelError
from sae_backend.core.run import ContextPass, LatentPass, RunError
from sae_backend.core.sae import SparseAutoencoder
from sae_backend.core.shortage import if_it_fits
from sae_backend.core.token_sets import TokenSets, token_sets
from sae_backend.models import Dataset, LanguageModel, Run, RunShard, Sae
from sae_backend.registry import source_of

DIFFERENCE_TOKENS = 512  # of a run, computed again in float32


def device() -> str:
    if settings.DEVICE != "auto":
        return settings.DEVICE
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype() -> str:
    """bfloat16 where the hardware multiplies it faster: CUDA, AMX, AVX512-BF16."""
    if settings.COMPUTE_DTYPE != "auto":
        return settings.COMPUTE_DTYPE
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    cpu = any(getattr(torch.cpu, test, bool)() for test in tests)
    return "bfloat16" if device() != "cpu" or cpu else "float32"


@lru_cache(maxsize=2)
def lm(pk: int, dtype: str) -> LM:
    row = LanguageModel.objects.get(pk=pk)
    with source_of(row) as source:
        model = language_model.load(source, getattr(torch, dtype), device(), row.revision or None)
        _ = model.bridge  # which reads the source too
    return model


@lru_cache(maxsize=2)
def sae(pk: int) -> SparseAutoencoder:
    row = Sae.objects.get(pk=pk)
    # what its import found in the names of folders is not there any more
    found = {"hook_name": row.hook_name, "hook_name_out": row.hook_name_out or None, "k": row.k}
    overrides = found | row.metadata.get("overrides", {})
    kind, name, *file = row.path.split("/")
    with storage.current().reading(f"{kind}/{name}") as here:
        return checkpoints.load(here.joinpath(*file), **overrides).to(device())


@lru_cache(maxsize=1)
def context_pass(run_id: int) -> ContextPass:
    run = Run.objects.select_related("sae__lm", "dataset__lm").get(pk=run_id)
    cfg = config_of(run)
    memory.keep_freed()
    return ContextPass(sae(run.sae_id), lm(run.sae.lm_id, cfg.dtype), cfg, special_of(run))


def special_of(run: Run) -> set[int]:
    _, special = packing.unpack_vocabulary(bytes(run.dataset.lm.vocabulary))
    return {i for i, s in enumerate(special) if s}


@lru_cache(maxsize=1)
def latent_pass(run_id: int, computed_at: datetime | None) -> LatentPass:
    """Of the spool as it was when all contexts were done; lost ones done again make another."""
    run = Run.objects.select_related("sae").get(pk=run_id)
    cfg = config_of(run)
    memory.keep_freed()
    unembedding = lm(run.sae.lm_id, cfg.dtype).unembedding()
    decoder = Decoder(sae(run.sae_id), unembedding, getattr(torch, cfg.dtype), sets_of(run.sae.lm_id))
    shards = run.shards.filter(kind=RunShard.Kind.CONTEXTS).order_by("index")
    with spool.reading(shards) as paths:
        return LatentPass(paths, decoder, cfg)


@lru_cache(maxsize=2)
def sets_of(lm_pk: int) -> TokenSets:
    """The token sets of a language model's vocabulary."""
    return token_sets(*packing.unpack_vocabulary(bytes(LanguageModel.objects.get(pk=lm_pk).vocabulary)))


def config_of(run: Run) -> RunConfig:
    known = RunConfig.__dataclass_fields__
    return RunConfig(**{k: v for k, v in run.config.items() if k in known})


def forget() -> None:
    """Free what is kept for the run at hand; language models and SAEs stay."""
    latent_pass.cache_clear()
    context_pass.cache_clear()


def forget_models() -> None:
    """Free the language models, SAEs and runs that are kept, for one that needs the memory."""
    forget()
    for what in (lm, reference, sae):
        what.cache_clear()
    gc.collect()
    if device() != "cpu":
        torch.cuda.empty_cache()


def free() -> int:
    """Bytes of memory that this worker's device has left."""
    if device().startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device()))[0])
    return min(psutil.virtual_memory().available, _left_to_container())


def _left_to_container() -> int:
    """What the limit of a container leaves; no limit is a large number."""
    root = Path("/sys/fs/cgroup")
    try:
        limit, used = ((root / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return int(limit) - int(used)
    except (OSError, ValueError):
        return 1 << 62


def dtype_difference(run: Run) -> dict[str, Any] | None:
    """Some contexts of the run in its dtype beside float32; None where that is its dtype, or does not fit."""
    cfg = config_of(run)
    if cfg.dtype == "float32":
        return None
    wanted = precision.spread(run.n_contexts, max(1, DIFFERENCE_TOKENS // run.dataset.ctx_len))
    tokens = np.concatenate([store.read_contexts(run.dataset, c, c + 1) for c in wanted])
    try:
        return if_it_fits(lambda: _difference(run, cfg, tokens))
    except RunError:
        return None


def _difference(run: Run, cfg: RunConfig, tokens: npt.NDArray[np.uint32]) -> dict[str, Any]:
    models = lm(run.sae.lm_id, cfg.dtype), reference(run.sae.lm_id)
    return precision.difference(sae(run.sae_id), *models, cfg, special_of(run), tokens)


def basis_by_layer(run: Run) -> dict[str, Any] | None:
    """Of the run's data set in its dtype, computed by whichever run asks first; None where it cannot be."""
    dtype, dataset = config_of(run).dtype, Dataset.objects.get(pk=run.dataset_id)
    if dtype not in dataset.basis_by_layer:
        wanted = precision.spread(dataset.n_contexts, layers.CONTEXTS)
        tokens = np.concatenate([store.read_contexts(dataset, c, c + 1) for c in wanted])
        try:
            found = if_it_fits(lambda: layers.basis_by_layer(lm(run.sae.lm_id, dtype), tokens, special_of(run)))
        except LanguageModelError:
            return None
        if found is None:
            return None
        dataset.basis_by_layer[dtype] = found
        dataset.save(update_fields=["basis_by_layer"])
    return dict(dataset.basis_by_layer[dtype])


@lru_cache(maxsize=1)
def reference(pk: int) -> LM:
    """The language model in float32, beside the one in the run's dtype."""
    return lm.__wrapped__(pk, "float32")
