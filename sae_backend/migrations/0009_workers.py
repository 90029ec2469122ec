from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0008_shared")]

    operations = [
        migrations.CreateModel(
            name="Worker",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=200, unique=True)),
                ("queues", models.CharField(max_length=200)),
                ("task", models.CharField(blank=True, max_length=100)),
                ("target", models.BigIntegerField(null=True)),
                ("since", models.DateTimeField(null=True)),
                ("memory", models.BigIntegerField(null=True)),
                ("started_at", models.DateTimeField()),
                ("seen_at", models.DateTimeField()),
            ],
        ),
    ]
