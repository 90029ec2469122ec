"""z of token sets on a latent's page; the basis kurtosis of every layer, once a data set."""

from django.db import migrations, models

# runs that are being loaded have tables which are not partitions yet
FORWARD = """
alter table latent_page add column enrichment bytea;
do $$ declare t text; begin
    for t in select relname from pg_class
        where relname ~ '^latent_page_r[0-9]+$' and relkind = 'r' and not relispartition
    loop execute format('alter table %I add column if not exists enrichment bytea', t); end loop;
end $$
"""


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0012_near")]
    operations = [
        migrations.RunSQL(FORWARD, "alter table latent_page drop column enrichment"),
        migrations.AddField("dataset", "basis_by_layer", models.JSONField(default=dict)),
    ]
