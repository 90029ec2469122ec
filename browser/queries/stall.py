"""Why a run does not move, and what to do about it."""

from __future__ import annotations

from browser.queries.progress import Progress
from browser.templatetags.latent_tags import ago
from sae_backend import queue

START = "start a worker (make worker, or the worker service in production)"


def why(progress: Progress) -> str:
    """The sentence for a run that nobody has touched for settings.STALLED_SECONDS."""
    seen = f"No worker has touched this run for {ago(progress.seen).removesuffix(' ago')}."
    held = progress.claims
    waiting = _waiting()
    if waiting is None:
        cause = "Redis, which carries the work to the workers, does not answer: start it again."
    elif waiting:
        wait = f"{waiting} pieces of it or others wait" if waiting > 1 else "1 piece of it or others waits"
        cause = f"{wait} in the queue, and no worker takes them: {START}."
    elif held:
        cause = f"{held[0].worker} began a part and fell silent; another worker takes it over. If none runs, {START}."
    else:
        again = "a worker that runs puts it there again within minutes, and Resume does so at once"
        cause = f"Nothing of it is in the queue: {again}. If none runs, {START}."
    return f"{seen} {cause} What is done is kept."


def _waiting() -> int | None:
    """Messages that no worker has taken; None where Redis does not answer."""
    try:
        return queue.waiting()
    except OSError:
        return None
