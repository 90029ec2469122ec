import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


def owner(related_name: str) -> models.ForeignKey:
    how = django.db.models.deletion.SET_NULL
    return models.ForeignKey(settings.AUTH_USER_MODEL, how, null=True, related_name=related_name)


def link(to: str, related_name: str) -> models.ForeignKey:
    how = django.db.models.deletion.CASCADE
    return models.ForeignKey(f"sae_backend.{to}", how, null=True, related_name=related_name)


def choice(*names: str) -> list[tuple[str, str]]:
    return [(name, name.capitalize()) for name in names]


class Migration(migrations.Migration):
    dependencies = [
        ("sae_backend", "0006_uploads"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField("languagemodel", "owner", owner("lms")),
        migrations.AddField("dataset", "owner", owner("datasets")),
        migrations.AddField("dataset", "recipe", models.JSONField(default=dict)),
        migrations.CreateModel(
            name="Addition",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("kind", models.CharField(choices=choice("model", "dataset"), max_length=8)),
                ("origin", models.CharField(choices=choice("hub", "folder", "upload"), max_length=8)),
                ("name", models.CharField(max_length=200)),
                ("source", models.CharField(max_length=1000)),
                ("revision", models.CharField(blank=True, max_length=200)),
                ("options", models.JSONField(default=dict)),
                ("text_sha256", models.CharField(blank=True, max_length=64)),
                ("text_bytes", models.BigIntegerField(default=0)),
                (
                    "state",
                    models.CharField(
                        choices=choice("queued", "running", "done", "failed", "cancelled"),
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
                ("heartbeat_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField(auto_now_add=True)),
                ("started_at", models.DateTimeField(null=True)),
                ("done_at", models.DateTimeField(null=True)),
                ("lm", link("languagemodel", "+")),
                ("made_dataset", link("dataset", "additions")),
                ("made_lm", link("languagemodel", "additions")),
                ("owner", owner("additions")),
            ],
        ),
    ]
