"""The statistics a table of latents can show, sort and export: the only column names that reach SQL."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A statistic of a latent: its column, its name on pages, what it means, and how it is printed."""

    name: str
    label: str
    means: str
    style: str = "compact"  # or "density", "fixed"


INDEX = Column("index", "latent", "Place in the SAE's code, from 0", "thousands")
COLUMNS = (
    Column("density", "density", "Fraction of counted tokens with activation above 0", "density"),
    Column("max_act", "max", "Largest activation: the length of what the latent writes to the model"),
    Column("mean_act", "mean", "Mean activation over the tokens where it fires"),
    Column("std_act", "std", "Standard deviation of the activation over the tokens where it fires"),
    Column("skewness", "skewness", "Skewness over the tokens where it fires"),
    Column("kurtosis", "kurtosis", "Pearson kurtosis over the tokens where it fires; a Gaussian has 3"),
    Column("kurtosis_all", "kurtosis, all tokens", "Pearson kurtosis over all counted tokens"),
    Column(
        "kurtosis_zero",
        "kurtosis about zero",
        "E[a⁴]/E[a²]² over all counted tokens; mostly restates density",
    ),
    Column("margin", "margin", "How far above what fires its pre-activation came at best; below 0 it missed"),
    Column("threshold", "threshold", "Activation from which it fires, where that is its own"),
    Column("since_fired", "steps since it fired", "Steps of training since it last fired, as the checkpoint counted"),
    Column("decoder_norm", "‖W_dec‖", "Norm of the decoder row on the checkpoint's own scale"),
    Column("b_enc", "b_enc", "Encoder bias on the checkpoint's own scale"),
    Column("encoder_decoder_cos", "cos(e,d)", "Cosine between encoder column and decoder row", "fixed"),
    Column("nearest_cos", "nearest cos", "Largest decoder cosine with another latent", "fixed"),
    Column(
        "nearest_live_cos", "nearest live cos", "Largest decoder cosine with another latent that fired", "fixed"
    ),
    Column("opposing_cos", "opposing cos", "Smallest decoder cosine with another latent", "fixed"),
    Column("dimensionality", "D_i", "Feature dimensionality, 1/Σ cos² over live latents"),
    Column("logit_std", "logit std", "Standard deviation of its direct logit effects"),
    Column("logit_skewness", "logit skewness", "Skewness of its direct logit effects"),
    Column("logit_kurtosis", "logit kurtosis", "Pearson kurtosis of its direct logit effects"),
)
BY_NAME = {column.name: column for column in (INDEX, *COLUMNS)}
# What the table on an SAE's page shows without being asked.
SHOWN = tuple(BY_NAME[name] for name in ("max_act", "kurtosis", "dimensionality", "encoder_decoder_cos"))
