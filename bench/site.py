"""A site of the benchmark's own: embedded servers on a throwaway directory, with the durability of production."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sae_backend.embedded import Servers


@contextmanager
def site() -> Iterator[Path]:
    """Servers up, Django set up, tables migrated; everything removed at the end."""
    with tempfile.TemporaryDirectory(prefix="latents-bench-") as folder:
        path = Path(folder)
        path.chmod(0o755)  # PostgreSQL may run as nobody
        with Servers(path) as servers:
            os.environ.update(servers.environment(), VAR_DIR=folder, DJANGO_SETTINGS_MODULE="sae_backend.settings")
            os.environ.setdefault("HF_HUB_OFFLINE", "1")
            _set_up()
            yield path


def _set_up() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)
    call_command("collectstatic", verbosity=0, interactive=False)
