"""A run's statistics once more, column by column: what a filter of a million latents reads."""

from django.db import migrations

FORWARD = """
create table latent_column (
    run_id bigint not null,
    name text not null,
    part integer not null,
    data bytea not null,
    primary key (run_id, name, part)
);
alter table latent_column alter data set storage external
"""


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0010_aside")]
    operations = [migrations.RunSQL(FORWARD, "drop table latent_column")]
