from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0007_additions")]

    operations = [migrations.AddField("run", "shared_at", models.DateTimeField(null=True))]
