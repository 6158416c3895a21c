"""Who is next: priority, aging, fairness between keys, arrival."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small import request

from ostinato.config import Scheduling
from ostinato.errors import RequestError
from ostinato.run.sequence import Sequence
from ostinato.run.waiting import AGING, Waiting


class Clock:
    """Seconds that a test moves on."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def queue(*orders: Scheduling | str) -> tuple[Waiting, list[Sequence], Clock]:
    clock = Clock()
    waiting, sequences = Waiting(clock), []
    for i, order in enumerate(orders):
        schedule = Scheduling(key=order) if isinstance(order, str) else order
        seq = Sequence(replace(request([1]), schedule=schedule), arrival=i)
        waiting.add(seq)
        sequences.append(seq)
    return waiting, sequences, clock


def order(waiting: Waiting, sequences: list[Sequence]) -> list[int]:
    """Numbers of the sequences as they begin, of which none ends."""
    found = []
    while (seq := waiting.first()) is not None:
        found.append(sequences.index(seq))
        waiting.began(seq)
    return found


ORDERS = [
    pytest.param(["", "", ""], [0, 1, 2], id="by arrival"),
    pytest.param([Scheduling(1), Scheduling(), Scheduling(-1)], [2, 1, 0], id="by priority"),
    pytest.param(["a", "a", "a", "b", "b"], [0, 3, 1, 4, 2], id="keys in turn"),
    pytest.param(["a", "a", "b", "c"], [0, 2, 3, 1], id="whose key runs least"),
    pytest.param(
        [Scheduling(0, key="a"), Scheduling(0, key="a"), Scheduling(1, key="b")], [0, 1, 2], id="priority first"
    ),
]


@pytest.mark.parametrize(("orders", "expected"), ORDERS)
def test_order(orders: list, expected: list[int]) -> None:
    waiting, sequences, _ = queue(*orders)
    assert order(waiting, sequences) == expected


def test_of_two_keys_that_run_alike_the_one_served_longer_ago_goes_first() -> None:
    waiting, (a, b, c, d), _ = queue("a", "b", "a", "b")
    for seq in (a, b):
        assert waiting.first() is seq
        waiting.began(seq)
    waiting.left(b)
    waiting.left(a)
    assert waiting.first() is c  # a was served before b
    waiting.began(c)
    assert waiting.first() is d


def test_who_waits_long_enough_becomes_urgent() -> None:
    waiting, (early, _), clock = queue(Scheduling(2), "")
    clock.now = 3 * AGING
    late = Sequence(replace(request([1]), schedule=Scheduling(0)), arrival=9)
    waiting.remove(next(seq for seq in waiting if seq is not early))
    waiting.add(late)
    assert waiting.first() is early


def test_keys_are_forgotten() -> None:
    waiting, sequences, _ = queue(*(f"key {i}" for i in range(100)))
    for seq in sequences:
        waiting.began(seq)
        waiting.left(seq)
    assert not waiting._served and not waiting._running and len(waiting) == 0


BAD = [
    pytest.param({"priority": 1.5}, "priority: expected an integer", id="priority"),
    pytest.param({"timeout": -1}, "timeout: expected a number", id="timeout"),
    pytest.param({"key": 3}, "key: expected a string", id="key"),
    pytest.param({"cache_salt": "\ud800"}, "cache_salt: expected Unicode text", id="salt"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_fields_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Scheduling(**fields)
