"""The language model: GPT-2's architecture at 5 million parameters, trained with Muon on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from demo.training.settings import CTX_LEN, D_MODEL, END_OF_TEXT_ID, HEADS, LAYERS, VOCABULARY, Settings

MIX = {"lib": 0.35, "test": 0.20, "site": 0.45}
MICRO_BATCHES = 2
FLAT = 0.1
Report = Callable[..., None]


def new_lm() -> GPT2LMHeadModel:
    """Initialise as GPT-2: N(0, 0.02), residual projections smaller by √(2·layers); positions at 0.01."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=CTX_LEN,
        n_embd=D_MODEL,
        n_layer=LAYERS,
        n_head=HEADS,
        activation_function="gelu",  # the erf form; GPT-2's tanh form is several times slower in bfloat16
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_OF_TEXT_ID,
        eos_token_id=END_OF_TEXT_ID,
    )
    lm = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    torch.nn.init.normal_(lm.transformer.wpe.weight, std=0.01)
    return lm


def train(settings: Settings, tokens: dict[str, np.ndarray], report: Report) -> GPT2LMHeadModel:
    """Train on the parts of MIX that hold two contexts or more; the others' shares go to these."""
    torch.manual_seed(settings.seed)
    lm = new_lm()
    optimizers = make_optimizers(lm, settings.lm_lr)
    batches = mixed_batches(tokens, settings.rows, np.random.default_rng(settings.seed))
    for step in range(settings.lm_steps):
        lr = settings.lm_lr * lr_factor(step, settings.lm_steps, settings.lm_warmup)
        loss = train_step(lm, optimizers, batches, max(lr, 1e-6))
        if (step + 1) % settings.report_every == 0 or step in (0, settings.lm_steps - 1):
            report(step=step + 1, loss=round(loss, 4), lr=round(lr, 6))
    return lm


def train_step(
    lm: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], batches: Iterator[Tensor], lr: float
) -> float:
    """Take one step at the given rate; return the mean cross-entropy of its rows, in nats a token."""
    total = 0.0
    for _ in range(MICRO_BATCHES):
        loss = cross_entropy(lm, next(batches)) / MICRO_BATCHES
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
    return total


def make_optimizers(lm: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW without decay for embeddings, norms and biases."""
    matrices = [p for name, p in lm.named_parameters() if ".h." in name and p.ndim == 2]
    rest = [p for name, p in lm.named_parameters() if not (".h." in name and p.ndim == 2)]
    muon = torch.optim.Muon(
        matrices, lr=lr, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, flat until a tenth of the steps, then linear to nothing."""
    return min(1.0, (step + 1) / warmup) * min(1.0, (1 - step / steps) / (1 - FLAT))


def cross_entropy(lm: GPT2LMHeadModel, targets: Tensor) -> Tensor:
    """Mean nats a token of predicting each row [row pos] from end-of-text and the tokens before."""
    start = torch.full((len(targets), 1), END_OF_TEXT_ID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = lm(torch.cat([start, targets[:, :-1]], 1), use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(lm: GPT2LMHeadModel, tokens: np.ndarray, rows: int) -> float:
    """Cross-entropy over the first `rows` contexts of a held-out text."""
    count = min(len(tokens) // CTX_LEN, rows)
    targets = torch.from_numpy(tokens[: count * CTX_LEN].astype(np.int64).reshape(count, CTX_LEN))
    losses = [cross_entropy(lm, batch).item() * len(batch) for batch in targets.split(16)]
    return sum(losses) / count


def mixed_batches(tokens: dict[str, np.ndarray], rows: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield rows [row pos] for ever, each from a part of the text drawn by its share of MIX."""
    parts = [part for part in MIX if len(tokens[part]) >= 2 * CTX_LEN]
    share = np.array([MIX[part] for part in parts])
    streams = [shuffled_windows(tokens[part], rng) for part in parts]
    while True:
        chosen = rng.choice(len(parts), rows, p=share / share.sum())
        batch = np.stack([next(streams[index]) for index in chosen])
        yield torch.from_numpy(batch.astype(np.int64))


def shuffled_windows(tokens: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield windows of CTX_LEN tokens for ever, shuffled and cut at another offset in each pass."""
    while True:
        offset = int(rng.integers(CTX_LEN))
        count = (len(tokens) - offset) // CTX_LEN
        windows = tokens[offset : offset + count * CTX_LEN].reshape(count, CTX_LEN)
        yield from windows[rng.permutation(count)]


def save(lm: GPT2LMHeadModel, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors, weights in float16."""
    lm.half().save_pretrained(folder)


def load(folder: Path) -> GPT2LMHeadModel:
    """Read the saved weights, rounded to float16 as everyone will see them, for float32 arithmetic."""
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
