"""Work that one process at a time may do, held in PostgreSQL: the lock ends with the process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import InterfaceError, OperationalError, connection


@contextmanager
def alone(what: str, key: int) -> Iterator[bool]:
    """Hold a piece of work that one process at a time may do; False when another has it. It ends with the process."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_try_advisory_lock(hashtext(%s), %s::int)", [what, key])
        mine = bool(cursor.fetchone()[0])
    try:
        yield mine
    finally:
        if mine:
            with suppress(OperationalError, InterfaceError), connection.cursor() as cursor:
                cursor.execute("select pg_advisory_unlock(hashtext(%s), %s::int)", [what, key])


def one_at_a_time(what: str) -> None:
    """Wait until no other transaction is in this section; ours leaves it at its end."""
    with connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(hashtext(%s), 0)", [what])


def end_holder(what: str, key: int) -> bool:
    """End the connection that holds a piece of work, whose process hangs; whether there was one."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            select pg_terminate_backend(pid) from pg_locks
            where locktype = 'advisory' and granted and pid <> pg_backend_pid() and objsubid = 2
              and database = (select oid from pg_database where datname = current_database())
              and classid = (hashtext(%s)::bigint & 4294967295)::oid and objid = %s::oid
            """,
            [what, key],
        )
        return bool(cursor.fetchall())
