"""Two threads in turn."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event, Lock

import pytest

from sae_backend import relay
from sae_backend.relay import Turn

PATIENCE = 240.0  # seconds


def test_the_next_item_is_begun_once_the_turn_is_passed_on() -> None:
    begun = Event()

    def work(item: int, turn: Turn) -> None:
        if item == 1:
            begun.set()
        elif item == 0:
            turn.pass_on()
            turn.pass_on()
            assert begun.wait(PATIENCE)

    relay.each(range(3), work)
    assert begun.is_set()


def test_until_then_nobody_else_is_at_work_or_asks_for_an_item() -> None:
    at_work, asked = Lock(), list[int]()

    def items() -> Iterator[int]:
        for item in range(20):
            assert not at_work.locked()
            asked.append(item)
            yield item

    def work(item: int, turn: Turn) -> None:
        assert at_work.acquire(blocking=False)
        assert asked == list(range(item + 1))
        Event().wait(0.01)  # in which another thread could come
        at_work.release()

    relay.each(items(), work)
    assert asked == list(range(20))


def test_an_error_is_raised_once_the_rest_is_done() -> None:
    done = list[int]()

    def work(item: int, turn: Turn) -> None:
        if item == 2:
            raise ValueError("of the third")
        done.append(item)

    with pytest.raises(ValueError, match="of the third"):
        relay.each(range(8), work)
    assert done == [0, 1, 3, 4, 5, 6, 7]


def test_of_two_errors_one_is_raised_and_the_other_logged(caplog: pytest.LogCaptureFixture) -> None:
    def work(item: int, turn: Turn) -> None:
        raise ValueError(f"of item {item}")

    with pytest.raises(ValueError, match="of item") as raised:
        relay.each(range(2), work)
    [record] = caplog.records
    assert record.exc_info and {str(record.exc_info[1]), str(raised.value)} == {"of item 0", "of item 1"}
