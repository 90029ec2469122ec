"""The partitioned tables. Partitions are data: store creates them, never a migration."""

from django.db import migrations

CREATE = """
create table document (
    dataset_id bigint not null, index integer not null, name text not null, primary key (dataset_id, index)
);
create table context (
    dataset_id bigint not null, index integer not null, document integer not null, position integer not null,
    tokens bytea not null, text text not null, primary key (dataset_id, index)
) partition by list (dataset_id);
create table latent (
    run_id integer not null, index integer not null, firings bigint not null, density float8 not null,
    max_act float8, mean_act float8, std_act float8, skewness float8, kurtosis float8, kurtosis_all float8,
    kurtosis_zero float8, decoder_norm float8 not null, b_enc float8, encoder_decoder_cos float8,
    nearest_cos float8, opposing_cos float8, dimensionality float8,
    logit_std float8, logit_skewness float8, logit_kurtosis float8,
    status smallint not null, strongest integer[] not null, promoted integer[] not null, spark bytea not null,
    primary key (run_id, index)
) partition by list (run_id);
create table latent_page (
    run_id integer not null, index integer not null, examples bytea not null, histogram bytea not null,
    logits bytea not null, neighbours bytea not null, primary key (run_id, index)
) partition by list (run_id);
"""
# five times quicker to write than PostgreSQL's own compression; not every build has it
COMPRESS = """
do $$ begin
    alter table context alter tokens set compression lz4, alter text set compression lz4;
    alter table latent_page alter examples set compression lz4, alter histogram set compression lz4,
        alter logits set compression lz4, alter neighbours set compression lz4;
exception when feature_not_supported then null;
end $$
"""
DROP = "drop table latent_page; drop table latent; drop table context; drop table document;"


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0001_initial")]
    operations = [
        migrations.RunSQL("create extension if not exists pg_trgm", migrations.RunSQL.noop),
        migrations.RunSQL(CREATE, DROP),
        migrations.RunSQL(COMPRESS, migrations.RunSQL.noop),
    ]
