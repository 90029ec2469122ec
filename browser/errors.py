"""What an address can be wrong about: raised by views and queries, rendered with status 404 by views.site."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.http import Http404
from django.urls import reverse

from sae_backend.models import DeletedSae, Run, Sae


@dataclass(frozen=True)
class Link:
    """Somewhere else to go."""

    text: str
    url: str
    note: str = ""
    icon: str = "next"


def sae_link(sae: Sae) -> Link:
    """A link to an SAE's page, by its identity."""
    note = f"{sae.name}, {sae.lm.name} {sae.hook_name}"
    return Link(sae.public_id, reverse("sae_detail", args=[sae.public_id]), note)


def _thin(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _same_index(index: int) -> Callable[[Sae], Link]:
    """A link to the latent of that index in another SAE."""
    return lambda sae: Link(
        f"{_thin(index)} of {sae.name}",
        reverse("latent_detail", args=[sae.public_id, index]),
        f"exists, at the same hook point, among {_thin(sae.d_sae)}",
    )


class NotFound(Http404):
    """An address that names nothing; `sentence` says what was understood and what there is."""

    kind = "not found"
    status = 404

    def __init__(self, heading: str, sentence: str, links: Sequence[Link] = ()) -> None:
        super().__init__(heading)
        self.heading, self.sentence, self.links = heading, sentence, list(links)


class SaeNotFound(NotFound):
    kind = "unknown SAE"

    def __init__(self, asked: str, close: Sequence[Sae]) -> None:
        sentence = f"No SAE's identity begins with {asked}."
        if close:
            sentence += " The closest are these." if len(close) > 1 else " The closest is this one."
        super().__init__(f"There is no SAE {asked}", sentence, [sae_link(s) for s in close])


class SaeAmbiguous(NotFound):
    kind = "ambiguous SAE"

    def __init__(self, asked: str, candidates: Sequence[Sae]) -> None:
        sentence = f"Several SAEs begin with {asked}: give more digits, or choose one."
        super().__init__(f"{asked} names more than one SAE", sentence, [sae_link(s) for s in candidates])


class RunNotFound(NotFound):
    kind = "unknown run"

    def __init__(self, sae: Sae, number: int, numbers: Sequence[int]) -> None:
        have = ", ".join(f"r{n}" for n in numbers) or "none"
        sentence = f"{sae.name} has no run r{number} whose pages are kept. Kept runs: {have}."
        links = [Link(f"r{n}", reverse("sae_detail", args=[f"{sae.public_id}@r{n}"])) for n in numbers]
        super().__init__(f"There is no run r{number} of this SAE", sentence, [*links, sae_link(sae)])


class LatentNotFound(NotFound):
    """An index outside 0 … d_sae − 1; `address` is how the SAE was named (12 digits, pinned or not)."""

    kind = "latent out of range"

    def __init__(self, sae: Sae, index: int, address: str, larger: Sequence[Sae] = ()) -> None:
        """`larger`: SAEs of the same hook point that have a latent of this index."""
        heading = f"There is no latent {_thin(index)} in this SAE"
        sentence = f"{sae.name} has {_thin(sae.d_sae)} latents, numbered 0 to {_thin(sae.d_sae - 1)}."
        links = [
            Link("Random latent", reverse("latent_random", args=[address]), "of this SAE that fired", "random"),
            Link("All latents", reverse("sae_detail", args=[address]), f"of {sae.name}", "list"),
        ]
        super().__init__(heading, sentence, [*map(_same_index(index), larger), *links])
        self.sae, self.index, self.address, self.last = sae, index, address, sae.d_sae - 1


class NotReady(NotFound):
    """An SAE none of whose runs is live yet."""

    kind = "not computed yet"

    def __init__(self, sae: Sae, run: Run | None) -> None:
        sentence = f"No run of {sae.name} is finished: its latents have no pages yet."
        links = [sae_link(sae)]
        if run is not None:
            links.append(Link(f"Job {run.pk}", reverse("run_detail", args=[run.pk]), run.get_state_display()))
        super().__init__("This SAE is not computed yet", sentence, links)
        self.sae, self.run = sae, run


class SaeDeleted(NotFound):
    """An SAE that was here."""

    kind, status = "deleted", 410

    def __init__(self, left: DeletedSae) -> None:
        when = f"{left.deleted_at.day} {left.deleted_at:%B %Y}"
        sentence = (
            f"{left.name}, sae:{left.public_id}, was deleted on {when} with all its runs. "
            "Whoever has its weights may upload them again: they will be at the same address."
        )
        super().__init__("This SAE was deleted", sentence)


class RunDropped(NotFound):
    """A run whose pages were given up."""

    kind, status = "dropped", 410

    def __init__(self, sae: Sae, number: int) -> None:
        sentence = f"Run r{number} of {sae.name} was dropped: its figures and contexts are gone."
        super().__init__(f"Run r{number} was dropped", sentence, [sae_link(sae)])


class NotAsked(NotFound):
    """A change that came neither with a token nor from a form of this site."""

    kind, status = "not allowed", 403

    def __init__(self) -> None:
        sentence = (
            "Programs send a token of theirs as Authorization: Bearer TOKEN, made at /account. In a browser, allow "
            "this site's cookies, go back, reload the page and try again."
        )
        super().__init__("It is not known who asks for this", sentence)


class TooSlow(Exception):
    """A list that the database gave up on after settings.LIST_TIMEOUT_MS."""

    sentence = "This list took too long to make. Narrow the filter, or sort by index, and try again."
