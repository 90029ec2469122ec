import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models

ARRAYS = ("best", "cos", "live", "fires", "both")
BLOBS = [f"{side}_{name}" for side in "ab" for name in ARRAYS]
# so that a latent's few bytes are read without the rest
OUTSIDE = [f"alter table sae_backend_comparison alter column {name} set storage external" for name in BLOBS]


def sae() -> models.ForeignKey:
    return models.ForeignKey("sae_backend.Sae", django.db.models.deletion.CASCADE, related_name="+")


def states(*names: str) -> list[tuple[str, str]]:
    return [(name, name.capitalize()) for name in names]


class Migration(migrations.Migration):
    dependencies = [
        ("sae_backend", "0014_moments"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField("sae", "compared", models.IntegerField(default=0)),
        migrations.CreateModel(
            name="Comparison",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("a", sae()),
                ("b", sae()),
                (
                    "owner",
                    models.ForeignKey(
                        settings.AUTH_USER_MODEL,
                        django.db.models.deletion.SET_NULL,
                        null=True,
                        related_name="comparisons",
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=states("queued", "running", "done", "failed", "cancelled"),
                        default="queued",
                        max_length=12,
                    ),
                ),
                ("error", models.TextField(blank=True)),
                ("stage", models.CharField(blank=True, max_length=100)),
                ("unit", models.CharField(blank=True, max_length=10)),
                ("done", models.BigIntegerField(default=0)),
                ("total", models.BigIntegerField(null=True)),
                ("attempts", models.IntegerField(default=0)),
                ("tries", models.IntegerField(default=0)),
                ("heartbeat_at", models.DateTimeField(null=True)),
                ("summary", models.JSONField(default=dict)),
                *((name, models.BinaryField(null=True)) for name in BLOBS),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("done_at", models.DateTimeField(null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=["a", "b"], name="comparison_pair"),
                    models.CheckConstraint(condition=models.Q(a__lt=models.F("b")), name="comparison_order"),
                ]
            },
        ),
        migrations.RunSQL("; ".join(OUTSIDE), migrations.RunSQL.noop),
    ]
