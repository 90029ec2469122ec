"""Series: checkpoints of one SAE in training, and the cosines of their decoder directions to the final ones."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0013_nearest_live")]
    operations = [
        migrations.AddField("sae", "series", models.CharField(blank=True, default="", max_length=200)),
        migrations.AddField("sae", "step", models.BigIntegerField(null=True)),
        migrations.AddField("sae", "series_at", models.DateTimeField(null=True)),
        migrations.AddField("saeimport", "series", models.CharField(blank=True, default="", max_length=200)),
        migrations.AddField("saeimport", "step", models.BigIntegerField(null=True)),
        migrations.CreateModel(
            "SeriesCosine",
            [
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("cos", models.BinaryField()),
                ("final", models.ForeignKey(
                    on_delete=django.db.models.deletion.CASCADE, related_name="+", to="sae_backend.sae",
                )),
                ("sae", models.OneToOneField(
                    on_delete=django.db.models.deletion.CASCADE, related_name="series_cosine", to="sae_backend.sae",
                )),
            ],
        ),
        # a page reads the four bytes of its latent
        migrations.RunSQL(
            "alter table sae_backend_seriescosine alter cos set storage external", migrations.RunSQL.noop
        ),
    ]
