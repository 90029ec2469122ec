"""A published run's statistics column by column, so that any filter is a few passes of NumPy over some megabytes.

An index of the database answers one range in one order; of two statistics it reads, at worst, every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from django.db import connection, transaction
from psycopg.pq import Format

PART = 65_536  # latents in a row
TOKENS = {"strongest": 3, "promoted": 1}  # lists of a latent's tokens, with how many there are at most
_SENT = {  # how PostgreSQL spells a column, and NumPy reads that; a token that is not there is -1
    "status": ("int2send(status)", ">i2"),
    **{
        name: (" || ".join(f"int4send(coalesce({name}[{i + 1}], -1))" for i in range(n)), ">i4")
        for name, n in TOKENS.items()
    },
}


def write(run_id: int, table: str, columns: Sequence[str], n: int) -> None:
    """Pack the columns of a sealed run's n latents; writing them again replaces them."""
    with transaction.atomic():
        drop(run_id)
        for part in range(-(-n // PART)):
            _write_part(run_id, table, [*_SENT, *columns], part)


def _write_part(run_id: int, table: str, columns: Sequence[str], part: int) -> None:
    packed = (f"string_agg({_sent(c)[0]}, ''::bytea order by index) as {c}" for c in columns)
    named = ", ".join(f"('{c}', {c})" for c in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"insert into latent_column (run_id, name, part, data) select %s, name, %s, data from ("
            f" select {', '.join(packed)} from {table} where run_id = %s and index >= %s and index < %s"
            f") packed, lateral (values {named}) as named (name, data)",
            [run_id, part, run_id, part * PART, (part + 1) * PART],
        )


def _sent(column: str) -> tuple[str, str]:
    return _SENT.get(column, (f"float8send(coalesce({column}, 'NaN'))", ">f8"))


def read(run_id: int, columns: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Those of the columns that there are, by index; undefined is NaN. Lists of tokens are [their places, latents]."""
    parts: dict[str, list[bytes]] = {}
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        cursor.format = Format.BINARY  # which Django's own cursor cannot: every byte comes as two digits there
        cursor.execute(
            "select name, data from latent_column where run_id = %s and name = any(%s) order by name, part",
            [run_id, list(columns)],
        )
        for name, data in cursor.fetchall():
            parts.setdefault(name, []).append(data)
    return {name: _array(name, b"".join(data)) for name, data in parts.items()}


def _array(name: str, data: bytes) -> npt.NDArray[Any]:
    values = np.frombuffer(data, _sent(name)[1])
    if name in TOKENS:
        return np.ascontiguousarray(values.reshape(-1, TOKENS[name]).T.astype(np.int32))
    return values.astype(np.int8 if name == "status" else np.float64)


def drop(run_id: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("delete from latent_column where run_id = %s", [run_id])
