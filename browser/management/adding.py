"""Language models and datasets added from the shell, whose user may name any folder and use this host's hub token."""

from __future__ import annotations

from django.core.management.base import CommandError, OutputWrapper

from sae_backend.models import Addition


def carried_out(row: Addition, queued: bool, out: OutputWrapper) -> Addition:
    """Add it in this process, or leave it to a worker; CommandError with its sentence where that fails."""
    if queued:
        from sae_backend import queue

        row.save()
        queue.send_addition(row.pk)
        out.write(f"queued; see /additions/{row.pk}")
        return row
    from sae_backend.additions import worker  # torch, which a queued one may do without

    row.save()
    try:
        worker.add(row.pk)
    except BaseException:  # Ctrl-C: no worker is to go on with it
        row.delete()
        raise
    row.refresh_from_db()
    if row.state != Addition.State.DONE:
        message = row.error or f"stopped: it is {row.state}"
        row.delete()
        raise CommandError(message)
    return row
