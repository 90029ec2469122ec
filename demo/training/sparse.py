"""The two sparse autoencoders: TopK (Gao et al. 2024) and JumpReLU (Rajamanoharan et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5
AUX_K = 128
AUX_WEIGHT = 1 / 32
JUMPRELU_NORM = 16.0
THRESHOLD_QUANTILE = 0.97
SPARSITY_WARMUP = 0.3
PULL = 3e-6


class SparseAutoencoder(nn.Module):
    """Weights as in the saved files: W_enc [d_in d_sae], W_dec [d_sae d_in] with unit rows, b_enc, b_dec."""

    def __init__(self, d_in: int, d_sae: int, seed: int = 0) -> None:
        super().__init__()
        rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed))
        self.W_dec = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        self.W_enc = nn.Parameter(self.W_dec.detach().T.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.silent_for = torch.zeros(d_sae, dtype=torch.long)  # tokens since each latent was last active
        self.dtype = torch.float32  # of the two matrix products; training sets bfloat16

    def pre_acts(self, x: Tensor) -> Tensor:
        """Pre-activations [token d_sae]; b_dec is taken off the input, as both file formats assume."""
        dtype = self.dtype
        return torch.addmm(self.b_enc.to(dtype), (x - self.b_dec).to(dtype), self.W_enc.to(dtype))

    def prepare(self, hidden: Tensor) -> Tensor:
        """Bring the residual stream [token d_in] to the scale that the weights are for."""
        raise NotImplementedError

    def activate(self, pre_acts: Tensor) -> Tensor:
        """The activation function, on [token d_sae]."""
        raise NotImplementedError

    def encode(self, hidden: Tensor) -> Tensor:
        """Activations [token d_sae] of a residual stream [token d_in]."""
        return self.activate(self.pre_acts(self.prepare(hidden)))

    def decode(self, acts: Tensor) -> Tensor:
        """The reconstruction [token d_in] in the normalised input's units."""
        return (acts @ self.W_dec.to(acts.dtype)).float() + self.b_dec

    def mark_active(self, active: Tensor, tokens: int, dead_after: int) -> Tensor:
        """Count each latent's silent tokens, given which fired [d_sae]; return the dead ones' indices."""
        self.silent_for = torch.where(active, 0, self.silent_for + tokens)
        return (self.silent_for > dead_after).nonzero().squeeze(1)

    @torch.no_grad()
    def fit_scale(self, x: Tensor, acts: Tensor) -> float:
        """Scale the encoder to the least squared error on x; return the factor."""
        direction, target = acts @ self.W_dec, x - self.b_dec
        factor = ((direction * target).sum() / direction.square().sum()).item()
        self.W_enc.mul_(factor)
        return factor


class TopK(SparseAutoencoder):
    """The k largest pre-activations of the layer-normalised input, those below zero cut."""

    activation = "topk"

    def __init__(self, d_in: int, d_sae: int, k: int, seed: int = 0) -> None:
        super().__init__(d_in, d_sae, seed)
        self.k = k
        self.variance = 1.0  # of the normalised inputs, summed over d_in

    @torch.no_grad()
    def initialise(self, sample: Tensor) -> None:
        """Put b_dec at the inputs' geometric median and fit the encoder's scale to a raw sample."""
        x = self.prepare(sample)
        self.variance = x.var(0).sum().item()
        self.b_dec.copy_(geometric_median(x[:8192]))
        self.fit_scale(x[:2048], self.activate(self.pre_acts(x[:2048])))

    def prepare(self, hidden: Tensor) -> Tensor:
        """Layer-normalise without weights; with the unbiased deviation, like SAELens and OpenAI's code."""
        return layer_norm(hidden)[0]

    def activate(self, pre_acts: Tensor) -> Tensor:
        """Activations [token d_sae], at most k of a row above zero."""
        values, index = pre_acts.topk(self.k, sorted=False)
        return torch.zeros_like(pre_acts).scatter(1, index, values.relu())

    def reconstruct(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return (reconstruction in the residual stream's units, activations)."""
        _, mean, std = layer_norm(hidden)
        acts = self.encode(hidden)
        return self.decode(acts) * std + mean, acts

    def loss(self, x: Tensor, progress: float, dead_after: int) -> tuple[Tensor, dict[str, float]]:
        """Fraction of variance unexplained, plus a 32nd of what the dead latents leave of the error."""
        pre_acts = self.pre_acts(x)
        acts = self.activate(pre_acts)
        error = self.decode(acts) - x
        fvu = error.square().sum(1).mean() / self.variance
        dead = self.mark_active((acts > 0).any(0), len(x), dead_after)
        aux = self.auxiliary_loss(pre_acts[:, dead], dead, error.detach()) if len(dead) else torch.zeros(())
        return fvu + AUX_WEIGHT * aux, {"fvu": fvu.item(), "dead": len(dead), "aux": aux.item()}

    def auxiliary_loss(self, pre_acts: Tensor, dead: Tensor, error: Tensor) -> Tensor:
        """AuxK: how badly the strongest dead latents [token dead] model what the reconstruction misses."""
        values, index = pre_acts.topk(min(AUX_K, len(dead)), sorted=False)
        acts = torch.zeros_like(pre_acts).scatter(1, index, values.relu())
        estimate = (acts @ self.W_dec[dead].to(acts.dtype)).float()
        return (estimate + error).square().sum(1).mean() / error.square().sum(1).mean()


class JumpReLU(SparseAutoencoder):
    """Pre-activations above a threshold of their own; the L0 aimed at is `target`."""

    activation = "jumprelu"

    def __init__(self, d_in: int, d_sae: int, target: float = 1.0, seed: int = 0) -> None:
        super().__init__(d_in, d_sae, seed)
        self.threshold = nn.Parameter(torch.zeros(d_sae))
        self.target = target
        self.scale = 1.0  # of the inputs in training; divided out of the biases and thresholds when saved
        self.variance = 1.0
        self.bandwidth = 1.0  # width of the kernel that gives the thresholds a gradient
        self.mean_l0: float | None = None

    @torch.no_grad()
    def initialise(self, sample: Tensor) -> None:
        """Scale inputs to mean norm 16 and put each threshold where 3 % of the sample [token d_in] passes."""
        self.scale = JUMPRELU_NORM / sample[:8192].norm(dim=1).mean().item()
        x = self.prepare(sample)
        self.variance = x.var(0).sum().item()
        self.b_dec.copy_(x[:8192].mean(0))
        pre_acts = self.pre_acts(x[:2048])
        self.threshold.copy_(pre_acts.quantile(THRESHOLD_QUANTILE, dim=0).clamp_min(1e-3))
        self.threshold.mul_(self.fit_scale(x[:2048], self.activate(pre_acts)))
        self.bandwidth = self.threshold.mean().item()

    def prepare(self, hidden: Tensor) -> Tensor:
        """Scale only: this SAE reads the residual stream as it is, its mean included."""
        return hidden * self.scale

    def activate(self, pre_acts: Tensor) -> Tensor:
        """Activations [token d_sae]."""
        return pre_acts * (pre_acts > self.threshold.to(pre_acts.dtype))

    def reconstruct(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return (reconstruction in the residual stream's units, activations)."""
        acts = self.encode(hidden)
        return self.decode(acts) / self.scale, acts

    def loss(self, x: Tensor, progress: float, dead_after: int) -> tuple[Tensor, dict[str, float]]:
        """Fraction of variance unexplained, plus (L0 / target - 1)² phased in over 30 % of the run."""
        pre_acts = self.pre_acts(x)
        acts = Jump.apply(pre_acts, self.threshold, self.bandwidth)
        l0 = Count.apply(pre_acts, self.threshold, self.bandwidth)
        fvu = (self.decode(acts) - x).square().sum(1).mean() / self.variance
        dead = self.mark_active((acts > 0).any(0), len(x), dead_after)
        # raises what dead latents read, so that they come within reach of their threshold again
        pull = -PULL * pre_acts[:, dead].float().mean(0).sum()
        loss = fvu + self.sparsity_slope(l0.item(), progress) * l0 + pull
        return loss, {"fvu": fvu.item(), "dead": len(dead), "l0": l0.item()}

    def sparsity_slope(self, l0: float, progress: float) -> float:
        """d penalty / d L0 at the running mean of L0, which one batch's L0 is too noisy for."""
        self.mean_l0 = l0 if self.mean_l0 is None else 0.9 * self.mean_l0 + 0.1 * l0
        excess = max(self.mean_l0 / self.target - 1, -0.5)
        return min(1.0, progress / SPARSITY_WARMUP) * 2 * excess / self.target


class Jump(torch.autograd.Function):
    """JumpReLU whose thresholds learn from the pre-activations within half a bandwidth of them."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Keep the pre-activations above the threshold."""
        active, near = gates(pre_acts, threshold, bandwidth)
        ctx.save_for_backward(active, near, threshold)
        ctx.bandwidth = bandwidth
        return pre_acts * active

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The thresholds' share is -threshold / bandwidth times the gradient that arrives near them."""
        active, near, threshold = ctx.saved_tensors
        arrived = (gradient * near).sum(0, dtype=torch.float32)
        return gradient * active, -threshold / ctx.bandwidth * arrived, None


class Count(torch.autograd.Function):
    """Mean L0 of a batch, whose gradient goes to the thresholds only."""

    @staticmethod
    def forward(ctx: Any, pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Count the pre-activations above their thresholds."""
        active, near = gates(pre_acts, threshold, bandwidth)
        ctx.slope = -near.sum(0, dtype=torch.float32) / (bandwidth * len(pre_acts))
        return active.sum(dtype=torch.float32) / len(pre_acts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        """The density of pre-activations around each threshold."""
        return None, ctx.slope * gradient, None


def gates(pre_acts: Tensor, threshold: Tensor, bandwidth: float) -> tuple[Tensor, Tensor]:
    """Which pre-activations [token d_sae] are above their threshold, and which within half a bandwidth."""
    distance = pre_acts - threshold.to(pre_acts.dtype)
    return distance > 0, distance.abs() < bandwidth / 2


def layer_norm(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the normalised input and the mean and deviation [token 1] that undo it."""
    mean = hidden.mean(-1, keepdim=True)
    centred = hidden - mean
    std = centred.std(-1, keepdim=True)
    return centred / (std + LAYER_NORM_EPS), mean, std


def geometric_median(x: Tensor, iterations: int = 50) -> Tensor:
    """The point [d_in] with the least sum of distances to the rows of x, by Weiszfeld's iteration."""
    median = x.mean(0)
    for _ in range(iterations):
        weight = 1 / (x - median).norm(dim=1, keepdim=True).clamp_min(1e-6)
        median = (x * weight).sum(0) / weight.sum()
    return median
