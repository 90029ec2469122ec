from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0009_workers")]

    operations = [
        migrations.AddField("saeimport", "tries", models.IntegerField(default=0)),
        migrations.AddField("addition", "tries", models.IntegerField(default=0)),
        migrations.AddField("run", "aside", models.BooleanField(default=False)),
    ]
