"""The nearest latent that fired, of every latent; runs loaded before have none."""

from django.db import migrations

# tables that a run is loading stand alone, and could not be attached without the columns of their parent
FORWARD = """
alter table latent add nearest_live integer, add nearest_live_cos float8;
do $$ declare standing text; begin
    for standing in select relname from pg_class
        where relkind = 'r' and relname ~ '^latent_r[0-9]+$' and not relispartition
    loop
        execute format('alter table %I add nearest_live integer, add nearest_live_cos float8', standing);
    end loop;
end $$
"""


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0011_packed_columns")]
    operations = [
        migrations.RunSQL(FORWARD, "alter table latent drop nearest_live, drop nearest_live_cos"),
    ]
