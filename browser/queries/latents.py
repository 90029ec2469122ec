"""The rows of one latent and of what its page refers to, unpacked; run and dataset are always parameters."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from django.db import connection

from browser.contexts import Window
from browser.errors import LatentNotFound
from browser.queries.latent_list import Filter
from browser.queries.saes import ResolvedSae, all_saes
from browser.token_search import named
from browser.tokens import Vocabulary
from sae_backend import packing
from sae_backend.models import STATUS_NAMES, LanguageModel, Latent, Run, Sae

STATISTICS = [f.name for f in Latent._meta.concrete_fields if f.name not in ("pk", "run", "index")]
MOST_LATENTS = 2**31 - 1  # that an index's column holds
PACKED = ("examples", "histogram", "logits", "neighbours", "misses", "cofiring", "enrichment")
_LATENT = f"""
    select
        (select index from latent where run_id = %s and index < %s and status > 0 order by index desc limit 1),
        (select index from latent where run_id = %s and index > %s and status > 0 order by index limit 1),
        l.strongest, l.{", l.".join(STATISTICS)}, p.{", p.".join(PACKED)}
    from latent l join latent_page p on p.run_id = l.run_id and p.index = l.index
    where l.run_id = %s and p.run_id = %s and l.index = %s and p.index = %s
"""


@dataclass(frozen=True)
class Stored:
    """A latent's two rows, unpacked."""

    before: int | None  # the nearest indices of latents that fired
    after: int | None
    values: dict[str, Any]
    strongest: list[int]
    examples: packing.Examples
    histogram: packing.Histogram
    logits: packing.Logits
    neighbours: packing.Neighbours
    misses: packing.Misses | None  # of a latent that fired
    together: packing.Together | None
    enrichment: npt.NDArray[np.float32]  # z of each of the run's token sets; none of a run that had no sets

    @property
    def top(self) -> float:
        return float(self.values["max_act"] or 0)

    def firings_in(self, interval: int) -> int:
        """Exact count of a band, or of all firings for the top and random examples."""
        bands = self.histogram.intervals
        return int(bands[interval - 1] if 1 <= interval <= len(bands) else self.values["firings"])


def stored(resolved: ResolvedSae, index: int) -> Stored:
    """One query; LatentNotFound outside 0 … d_sae − 1."""
    run = resolved.run.pk
    found = None
    if index < resolved.sae.d_sae:
        with connection.cursor() as cursor:
            cursor.execute(_LATENT, [run, index, run, index, run, run, index, index])
            found = cursor.fetchone()
    if found is None:
        raise LatentNotFound(resolved.sae, index, resolved.address, _larger(resolved.sae, index))
    before, after, strongest, *values = found[: -len(PACKED)]
    blobs = dict(zip(PACKED, found[-len(PACKED) :], strict=True))
    return Stored(
        before,
        after,
        _statistics(resolved.run, values),
        strongest,
        packing.unpack_examples(blobs["examples"]),
        packing.unpack_histogram(blobs["histogram"]),
        packing.unpack_logits(blobs["logits"]),
        packing.unpack_neighbours(blobs["neighbours"]),
        packing.unpack_misses(blobs["misses"]),
        packing.unpack_cofiring(blobs["cofiring"]),
        packing.unpack_enrichment(blobs["enrichment"]) if blobs["enrichment"] else np.zeros(0, np.float32),
    )


def _larger(sae: Sae, index: int) -> list[Sae]:
    """Computed SAEs of the same hook point that have a latent of this index."""
    if index > MOST_LATENTS:
        return []
    others = all_saes().filter(lm=sae.lm_id, hook_name=sae.hook_name, d_sae__gt=index, current_run__isnull=False)
    return list(others.order_by("d_sae", "pk")[:3])


def _statistics(run: Run, values: Iterable[Any]) -> dict[str, Any]:
    """The columns by name, the status as its word, and the bound that a dead latent's density has."""
    out = dict(zip(STATISTICS, values, strict=True))
    out["status"] = STATUS_NAMES[out["status"]]
    out["tokens"] = round(out["firings"] / out["density"]) if out["density"] else counted_tokens(run)
    out["density_bound"] = 3 / out["tokens"] if not out["firings"] and out["tokens"] else None
    return out


def counted_tokens(run: Run) -> int:
    """N of every density: positions that are not special, or all where the run does not say."""
    return int(run.summary.get("tokens") or run.tokens_done or run.tokens_total)


def vocabulary(lm: LanguageModel) -> Vocabulary:
    """Kept in the process: a language model's vocabulary never changes."""
    return _vocabulary(lm.sha256)


@lru_cache(maxsize=8)
def _vocabulary(sha256: str) -> Vocabulary:
    blob = LanguageModel.objects.values_list("vocabulary", flat=True).get(sha256=sha256)
    return Vocabulary(*packing.unpack_vocabulary(bytes(blob)))


def with_tokens(wanted: Filter, lm: LanguageModel) -> Filter:
    """The filter with the ids of the token that it asks for, if it does."""
    return replace(wanted, ids=named(vocabulary(lm), wanted.token)) if wanted.token else wanted


def _array(indices: Iterable[int]) -> str:
    """As PostgreSQL reads an array; psycopg would look at each number by itself."""
    return f"{{{','.join(map(str, indices))}}}"


def windows(run: Run, d_vocab: int, indices: Iterable[int]) -> dict[int, Window]:
    """Contexts of the run's data set, by index."""
    wanted = sorted({int(i) for i in indices})
    with connection.cursor() as cursor:
        cursor.execute(
            "select index, document, position, tokens from context where dataset_id = %s and index = any(%s::int[])",
            [run.dataset_id, _array(wanted)],
        )
        dtype = packing.token_dtype(d_vocab)
        return {i: Window(i, doc, pos, np.frombuffer(ids, dtype)) for i, doc, pos, ids in cursor.fetchall()}


MOST_NAMES = 65_536  # of documents, in the process
_names: dict[tuple[int, int], str] = {}  # by data set, whose rows never change once a run has read them, and index


def documents(run: Run, indices: Iterable[int]) -> dict[int, str]:
    """Names of documents; those that were asked for before are kept."""
    wanted = set(indices)
    found = {i: name for i in wanted if (name := _names.get((run.dataset_id, i))) is not None}
    if missing := sorted(wanted - found.keys()):
        read = _read_documents(run, missing)
        found |= read
        if len(_names) + len(read) > MOST_NAMES:
            _names.clear()
        _names.update({(run.dataset_id, i): name for i, name in read.items()})
    return found


def _read_documents(run: Run, indices: list[int]) -> dict[int, str]:
    with connection.cursor() as cursor:
        cursor.execute(
            "select index, name from document where dataset_id = %s and index = any(%s)",
            [run.dataset_id, indices],
        )
        return dict(cursor.fetchall())


def neighbour_rows(run: Run, indices: list[int]) -> dict[int, dict[str, Any]]:
    """Density and strongest tokens of several latents, by index."""
    with connection.cursor() as cursor:
        cursor.execute(
            "select index, density, strongest from latent where run_id = %s and index = any(%s::int[])",
            [run.pk, _array(indices)],
        )
        return {
            i: {"density": density, "strongest": strongest} for i, density, strongest in cursor.fetchall()
        }


def random_index(resolved: ResolvedSae) -> int:
    """A latent that fired, each as likely; where nearly all are dead, the next that fired after a place."""
    guesses = [random.randrange(resolved.sae.d_sae) for _ in range(32)]
    with connection.cursor() as cursor:
        cursor.execute(
            "select index from latent where run_id = %s and index = any(%s) and firings > 0",
            [resolved.run.pk, guesses],
        )
        alive = {i for (i,) in cursor.fetchall()}
        for guess in guesses:
            if guess in alive:
                return guess
        cursor.execute(
            "select index from latent where run_id = %s and firings > 0 order by index < %s, index limit 1",
            [resolved.run.pk, guesses[0]],
        )
        found = cursor.fetchone()
    return int(found[0]) if found else guesses[0]
