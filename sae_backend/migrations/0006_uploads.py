import uuid
from typing import Any

import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models

STATES = ("receiving", "checking", "waiting", "queued", "running", "done", "failed", "cancelled")


def give_keys(apps: Any, editor: Any) -> None:
    rows = apps.get_model("sae_backend", "SaeImport").objects
    for pk in rows.values_list("pk", flat=True):
        rows.filter(pk=pk).update(key=uuid.uuid4())


class Migration(migrations.Migration):
    dependencies = [
        ("sae_backend", "0005_managed"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField("saeimport", "key", models.UUIDField(null=True, editable=False)),
        migrations.RunPython(give_keys, migrations.RunPython.noop),
        migrations.AlterField(
            "saeimport", "key", models.UUIDField(default=uuid.uuid4, editable=False, unique=True)
        ),
        migrations.AddField(
            "saeimport",
            "owner",
            models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="imports",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AlterField("saeimport", "source", models.CharField(blank=True, max_length=1000)),
        migrations.AddField("saeimport", "from_hub", models.BooleanField(default=False)),
        migrations.AlterField(
            "saeimport",
            "lm",
            models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, to="sae_backend.languagemodel"
            ),
        ),
        migrations.AddField("saeimport", "max_tokens", models.BigIntegerField(null=True)),
        migrations.AddField("saeimport", "go_on", models.BooleanField(default=False)),
        migrations.AddField("saeimport", "report", models.JSONField(default=dict)),
        migrations.AlterField(
            "saeimport",
            "state",
            models.CharField(choices=[(s, s.capitalize()) for s in STATES], default="queued", max_length=12),
        ),
        migrations.AddField("saeimport", "attempts", models.IntegerField(default=0)),
        migrations.AddField("saeimport", "heartbeat_at", models.DateTimeField(null=True)),
        migrations.AddField(
            "saeimport",
            "touched_at",
            models.DateTimeField(auto_now_add=True, default=django.utils.timezone.now),
            preserve_default=False,
        ),
        migrations.CreateModel(
            name="UploadFile",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.UUIDField(default=uuid.uuid4, editable=False, unique=True)),
                ("name", models.CharField(max_length=400)),
                ("size", models.BigIntegerField()),
                ("received", models.BigIntegerField(default=0)),
                ("complete", models.BooleanField(default=False)),
                ("kept", models.BooleanField(default=True)),
                ("sha256", models.CharField(blank=True, max_length=64)),
                ("expected_sha256", models.CharField(blank=True, max_length=64)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                (
                    "of",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="files",
                        to="sae_backend.saeimport",
                    ),
                ),
            ],
            options={"constraints": [models.UniqueConstraint(fields=("of", "name"), name="upload_name")]},
        ),
    ]
