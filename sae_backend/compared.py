"""The table of comparisons between two SAEs, a row each."""

from __future__ import annotations

from django.conf import settings
from django.db import models

# Arrays by latent, little-endian, of SAE a and of SAE b: core.matching.Side. Best and cos are [latents, N_BEST].
ARRAYS = {"best": "<u4", "cos": "<f4", "live": "|u1", "fires": "<u4", "both": "<u4"}


class Comparison(models.Model):
    """What a worker found, or will, of two SAEs at the same hook point; a is the one that was here first."""

    class State(models.TextChoices):
        QUEUED = "queued"
        RUNNING = "running"
        DONE = "done"
        FAILED = "failed"
        CANCELLED = "cancelled"

    a = models.ForeignKey("Sae", models.CASCADE, related_name="+")
    b = models.ForeignKey("Sae", models.CASCADE, related_name="+")
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="comparisons")
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    error = models.TextField(blank=True)
    stage = models.CharField(max_length=100, blank=True)  # what a worker does now, in words
    unit = models.CharField(max_length=10, blank=True)  # of done and total: latents or tokens
    done = models.BigIntegerField(default=0)
    total = models.BigIntegerField(null=True)
    attempts = models.IntegerField(default=0)  # times that it was asked for, or taken up by a worker; the latest counts
    tries = models.IntegerField(default=0)  # workers since it was asked for that have not left it alive
    heartbeat_at = models.DateTimeField(null=True)
    summary = models.JSONField(default=dict)  # the sample, and figures of both on it: comparisons.worker
    a_best = models.BinaryField(null=True)
    a_cos = models.BinaryField(null=True)
    a_live = models.BinaryField(null=True)
    a_fires = models.BinaryField(null=True)
    a_both = models.BinaryField(null=True)
    b_best = models.BinaryField(null=True)
    b_cos = models.BinaryField(null=True)
    b_live = models.BinaryField(null=True)
    b_fires = models.BinaryField(null=True)
    b_both = models.BinaryField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    done_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["a", "b"], name="comparison_pair"),
            models.CheckConstraint(condition=models.Q(a__lt=models.F("b")), name="comparison_order"),
        ]

    def __str__(self) -> str:
        return f"{self.a} and {self.b}"


BLOBS = [f"{side}_{name}" for side in "ab" for name in ARRAYS]
