"""What a fault means: the database is away for a while, or a person has to mend something."""

from __future__ import annotations

from django.db import Error, InterfaceError, OperationalError, connection

DATABASE = (OperationalError, InterfaceError)
# conditions of an OperationalError that time does not mend; codes are PostgreSQL's
FULL, NO_MEMORY = "53100", "53200"
BROKEN = ("58", "F0", "XX")  # classes: the server's files and insides


def passes(error: BaseException) -> bool:
    """Whether the database is only away, restarting or busy: what was under way is done again."""
    code = _code(error)
    return isinstance(error, DATABASE) and code not in (FULL, NO_MEMORY) and not code.startswith(BROKEN)


def sentence(error: Error) -> str:
    """What to do about a database that cannot go on."""
    cause = str(error).splitlines()[0]
    if _code(error) == FULL:
        return f"PostgreSQL cannot write: {cause}. It needs free space for its data; make some, then resume the run"
    if _code(error) == NO_MEMORY:
        return f"PostgreSQL has too little memory: {cause}. Give it more, then resume the run"
    return f"PostgreSQL cannot go on: {cause}. Its log says more; mend that, then resume the run"


def _code(error: BaseException) -> str:
    """PostgreSQL's five characters; none where the connection was lost."""
    return getattr(error.__cause__, "sqlstate", None) or ""


def leave_broken_connection() -> None:
    """Take a new one next time; a sound one stays, with the locks it holds."""
    if not connection.is_usable():
        connection.close()
