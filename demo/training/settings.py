"""Every number of the training, as for the shipped files, and a small setting for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
VOCABULARY = 4096
CTX_LEN = 256
D_MODEL = 256
LAYERS = 5
HEADS = 4
LAYER = 2
HOOK_NAME = f"blocks.{LAYER}.hook_resid_post"


@dataclass(frozen=True)
class SaeSettings:
    """One sparse autoencoder; `sparsity` is k for "topk" and the L0 aimed at for "jumprelu"."""

    activation: str
    d_sae: int
    sparsity: int
    tokens: int
    lr: float
    checkpoints: tuple[float, ...] = ()
    # fractions of the run after which the weights so far are kept

    @property
    def name(self) -> str:
        """The folder's name, for instance `resid_post_2_topk32_4096`."""
        k = self.sparsity if self.activation == "topk" else ""
        return f"resid_post_{LAYER}_{self.activation}{k}_{self.d_sae}"


SAES = (
    SaeSettings("topk", 4096, 32, tokens=6_000_000, lr=8e-4, checkpoints=(0.03, 0.3)),
    SaeSettings("topk", 1024, 32, tokens=2_000_000, lr=1.2e-3),
    SaeSettings("topk", 1024, 16, tokens=2_000_000, lr=1.2e-3),
    SaeSettings("topk", 8192, 32, tokens=2_500_000, lr=6e-4),
    SaeSettings("jumprelu", 4096, 20, tokens=3_000_000, lr=8e-4),
)


@dataclass(frozen=True)
class Settings:
    """The whole chain; the defaults are those of the shipped files."""

    seed: int = 0
    chars: int | None = None
    # characters kept of each part of the text, training and validation apart; None is all

    lm_steps: int = 1665
    lm_warmup: int = 50
    lm_lr: float = 4e-3
    rows: int = 16
    # contexts in a micro-batch; two micro-batches make a step
    validation_rows: int = 200
    report_every: int = 100

    activations: int = 4_000_000
    # positions of the residual stream collected for the SAEs
    sae_batch: int = 2048
    sae_warmup: int = 100
    dead_after: int = 200_000
    # tokens without an activation after which a latent counts as dead
    density_tokens: int = 1_000_000
    saes: tuple[SaeSettings, ...] = SAES


def quick() -> Settings:
    """The same chain and the same file shapes, far too short to learn much."""
    return Settings(
        chars=400_000,
        lm_steps=10,
        lm_warmup=2,
        rows=4,
        validation_rows=4,
        report_every=1,
        activations=4_080,
        sae_batch=512,
        sae_warmup=2,
        dead_after=1_024,
        density_tokens=2_048,
        saes=tuple(replace(sae, tokens=4_096) for sae in SAES),
    )
