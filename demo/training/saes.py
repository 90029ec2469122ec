"""Training one sparse autoencoder on collected activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from demo.training.settings import SaeSettings, Settings
from demo.training.sparse import JumpReLU, TopK

DECAY = 0.25
VARIANCE_SAMPLE = 20_000
Report = Callable[..., None]
KeepCheckpoint = Callable[[TopK | JumpReLU, int], None]


def new_sae(sae_settings: SaeSettings, d_in: int) -> TopK | JumpReLU:
    """An autoencoder with unit Gaussian decoder rows, its encoder the transpose."""
    kind = TopK if sae_settings.activation == "topk" else JumpReLU
    return kind(d_in, sae_settings.d_sae, sae_settings.sparsity)


def train(
    hidden: Tensor, sae_settings: SaeSettings, settings: Settings, report: Report, keep: KeepCheckpoint
) -> TopK | JumpReLU:
    """Train on hidden [position d_in]; call `keep(sae, step)` at the fractions in `checkpoints`."""
    sae = new_sae(sae_settings, hidden.shape[1])
    sae.initialise(hidden[:VARIANCE_SAMPLE].float())
    sae.dtype = torch.bfloat16
    optimizer = torch.optim.Adam(sae.parameters(), lr=sae_settings.lr, eps=6.25e-10, fused=True)
    steps = sae_settings.tokens // settings.sae_batch
    kept = checkpoint_steps(sae_settings, settings.sae_batch)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    for step, rows in enumerate(batches(len(hidden), settings.sae_batch, steps, generator)):
        optimizer.param_groups[0]["lr"] = sae_settings.lr * lr_factor(step, steps, settings.sae_warmup)
        loss, figures = sae.loss(sae.prepare(hidden[rows].float()), (step + 1) / steps, settings.dead_after)
        train_step(sae, optimizer, loss)
        if step % settings.report_every == 0 or step == steps - 1:
            report(step=step + 1, **{name: round(value, 4) for name, value in figures.items()})
        if step + 1 in kept:
            keep(sae, step + 1)
    return sae


def checkpoint_steps(sae_settings: SaeSettings, batch: int) -> list[int]:
    """The steps after which weights are kept, at least one."""
    return [max(1, int(fraction * sae_settings.tokens / batch)) for fraction in sae_settings.checkpoints]


def train_step(sae: TopK | JumpReLU, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Step along the loss with decoder rows held at length 1 and thresholds at or above 0."""
    optimizer.zero_grad()
    loss.backward()
    # thresholds are few and their gradients noisy: they neither count in the norm nor are clipped
    clipped = [sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec]
    slope = sae.W_dec.grad
    assert slope is not None
    with torch.no_grad():
        slope.sub_((slope * sae.W_dec).sum(1, keepdim=True) * sae.W_dec)
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
        if isinstance(sae, JumpReLU):
            sae.threshold.clamp_(min=0.0)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` sets of `size` positions, each position once a pass, passes shuffled anew."""
    if size > count:
        raise ValueError(f"Only {count} activations were collected; a batch needs {size}.")
    per_pass = count // size
    for done in range(0, steps, per_pass):
        order = torch.randperm(count, generator=generator)
        yield from order[: min(per_pass, steps - done) * size].split(size)


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, flat, then linear to nothing over the last quarter."""
    return min(1.0, (step + 1) / warmup) * min(1.0, (1 - step / steps) / DECAY)
