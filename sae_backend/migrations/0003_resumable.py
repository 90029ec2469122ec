from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("sae_backend", "0002_partitioned"),
    ]

    operations = [
        migrations.AddField(
            model_name="run",
            name="loaded_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="run",
            name="stopped_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="runshard",
            name="checksum",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="runshard",
            name="claimed_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="runshard",
            name="deaths",
            field=models.IntegerField(default=0),
        ),
        migrations.AddField(
            model_name="runshard",
            name="losses",
            field=models.IntegerField(default=0),
        ),
    ]
