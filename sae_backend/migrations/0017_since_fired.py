"""Steps of training since latents last fired, where the checkpoint says so; NULL in runs of before."""

from __future__ import annotations

from django.db import migrations

# A run that is being loaded has tables of its own, which will be attached to this.
FORWARD = """
do $$ declare t text; begin
    for t in select relname from pg_class
        where relkind = 'r' and not relispartition and relname ~ '^latent_r[0-9]+$' or relname = 'latent'
    loop execute format('alter table %I add since_fired float8', t); end loop;
end $$
"""


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0016_comparisons")]
    operations = [migrations.RunSQL(FORWARD, "alter table latent drop since_fired")]
