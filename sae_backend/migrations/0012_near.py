"""How near latents come to firing, from where on they fire, and which fire together; NULL in runs of before."""

from __future__ import annotations

from django.db import migrations

# A run that is being loaded has tables of its own, which will be attached to these.
FORWARD = """
do $$ declare t text; begin
    for t in select relname from pg_class
        where relkind = 'r' and not relispartition and relname ~ '^latent_r[0-9]+$' or relname = 'latent'
    loop execute format('alter table %I add margin float8, add threshold float8', t); end loop;
    for t in select relname from pg_class
        where relkind = 'r' and not relispartition and relname ~ '^latent_page_r[0-9]+$' or relname = 'latent_page'
    loop execute format('alter table %I add misses bytea, add cofiring bytea', t);
        begin
            execute format('alter table %I alter misses set compression lz4, alter cofiring set compression lz4', t);
        exception when feature_not_supported then
            execute format('alter table %I alter misses set storage external, alter cofiring set storage external', t);
        end;
    end loop;
end $$
"""
BACKWARD = """
alter table latent drop margin, drop threshold;
alter table latent_page drop misses, drop cofiring
"""


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0015_series")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
