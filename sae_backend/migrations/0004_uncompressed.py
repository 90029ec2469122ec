"""Where lz4 is not built in, pages are stored as they are packed: pglz is slow and saves nothing on them."""

from __future__ import annotations

from django.db import migrations

FORWARD = """
do $$ begin
    if not exists (select from pg_attribute where attrelid = 'latent_page'::regclass and attcompression = 'l') then
        alter table latent_page alter examples set storage external, alter histogram set storage external,
            alter logits set storage external, alter neighbours set storage external;
    end if;
end $$
"""
BACKWARD = """
alter table latent_page alter examples set storage extended, alter histogram set storage extended,
    alter logits set storage extended, alter neighbours set storage extended
"""


class Migration(migrations.Migration):
    dependencies = [("sae_backend", "0003_resumable")]
    operations = [migrations.RunSQL(FORWARD, BACKWARD)]
