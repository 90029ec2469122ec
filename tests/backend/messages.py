"""The messages that wait in Redis, carried out in this process instead of a worker's."""

from __future__ import annotations

from typing import Any

from sae_backend.celery import app


def queue(channel: Any) -> Any:
    bound = app.amqp.queues["compute"].bind(channel)
    bound.declare()
    return bound


def forget() -> None:
    with app.connection_for_write() as connection:
        queue(connection.default_channel).purge()


def take() -> tuple[str, list[Any]] | None:
    """The next message's task and arguments."""
    with app.connection_for_read() as connection:
        message = queue(connection.default_channel).get()
        if message is None:
            return None
        message.ack()
        return message.headers["task"].rpartition(".")[2], message.decode()[0]


def carry_out(errors: list[str] | None = None) -> list[str]:
    """Run every task that waits, and those that they send; their names. What a task raises stays in the log."""
    return [name for name, _ in carry_out_with_runs(errors)]


def carry_out_with_runs(errors: list[str] | None = None) -> list[tuple[str, int]]:
    """The same, each name with the task's first argument: its run or import."""
    done = []
    while (next_one := take()) is not None:
        name, arguments = next_one
        done.append((name, arguments[0]))
        try:
            app.tasks[f"sae_backend.tasks.{name}"](*arguments)
        except Exception as error:
            if errors is None:
                raise
            errors.append(str(error))
    return done
