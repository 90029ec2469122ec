"""The arrays of a comparison, read whole for its page or for a single latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from django.db import connection
from psycopg.pq import Format

from sae_backend.compared import ARRAYS, BLOBS
from sae_backend.core.matching import N_BEST, Side

_WHOLE = f"select {', '.join(BLOBS)} from sae_backend_comparison where id = %s and state = 'done'"
_ONE = """
    select s.sha256, s.name, s.d_sae, c.best, c.cos, c.fires, c.both_fire
    from (
        select b_id as other,
               substring(a_best from %(pair)s for 4) as best, substring(a_cos from %(pair)s for 4) as cos,
               substring(a_fires from %(one)s for 4) as fires, substring(a_both from %(one)s for 4) as both_fire
        from sae_backend_comparison where a_id = %(sae)s and state = 'done'
        union all
        select a_id, substring(b_best from %(pair)s for 4), substring(b_cos from %(pair)s for 4),
               substring(b_fires from %(one)s for 4), substring(b_both from %(one)s for 4)
        from sae_backend_comparison where b_id = %(sae)s and state = 'done'
        limit %(most)s
    ) c join sae_backend_sae s on s.id = c.other
"""
MOST_SHOWN, MOST_READ = 12, 64  # other SAEs



def sides(pk: int) -> tuple[Side, Side] | None:
    """Both SAEs of a comparison that is done, a and b."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        cursor.format = Format.BINARY  # which Django's own cursor cannot: every byte comes as two digits there
        cursor.execute(_WHOLE, [pk])
        found = cursor.fetchone()
    if found is None:
        return None
    blobs = dict(zip(BLOBS, found, strict=True))
    return _side(blobs, "a"), _side(blobs, "b")


def _side(blobs: dict[str, bytes], side: str) -> Side:
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.frombuffer(blobs[f"{side}_{name}"], dtype) for name, dtype in ARRAYS.items()
    }
    n = len(arrays["live"])
    return Side(
        arrays["best"].reshape(n, N_BEST), arrays["cos"].reshape(n, N_BEST), arrays["live"].astype(bool),
        arrays["fires"], arrays["both"],
    )  # fmt: skip


def blobs(side: str, arrays: Side) -> dict[str, bytes]:
    """The columns of one side."""
    return {f"{side}_{name}": getattr(arrays, name).astype(dtype).tobytes() for name, dtype in ARRAYS.items()}


@dataclass(frozen=True)
class Counterpart:
    """What another SAE has that is most like a latent."""

    public_id: str
    name: str
    d_sae: int
    index: int
    cos: float
    fires: int  # tokens of the sample on which the latent fires
    both: int  # of those, on which the counterpart fires too


def single(sae_id: int, index: int) -> list[Counterpart]:
    """The best counterpart of one latent in each SAE it was compared with, the largest cosine first; one query."""
    place = {"pair": 1 + 4 * N_BEST * index, "one": 1 + 4 * index, "sae": sae_id, "most": MOST_READ}
    with connection.cursor() as cursor:
        cursor.execute(_ONE, place)
        found = [_counterpart(*row) for row in cursor.fetchall()]
    return sorted((x for x in found if x.cos == x.cos), key=lambda x: (-x.cos, x.public_id))[:MOST_SHOWN]


def _counterpart(sha256: str, name: str, d_sae: int, *packed: bytes) -> Counterpart:
    dtypes = (ARRAYS[array] for array in ("best", "cos", "fires", "both"))
    best, cos, fires, both = (
        np.frombuffer(value, dtype)[0].item() for value, dtype in zip(packed, dtypes, strict=True)
    )
    return Counterpart(sha256[:12], name, d_sae, best, cos, fires, both)
