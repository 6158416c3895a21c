"""Sequence.accept: when a completion ends, and the contents of its events."""

from __future__ import annotations

import pytest
from small import request, sequence

from ostinato.run.sequence import Event, Sequence

ENDS = [  # stop ids, min_tokens, max_tokens, tokens offered, reason
    pytest.param((7,), 0, 9, [1, 7], "stop", id="stop token"),
    pytest.param((7,), 2, 9, [7, 7, 7], "stop", id="not before min_tokens"),
    pytest.param((), 0, 3, [7, 7, 7], "length", id="length"),
    pytest.param((7,), 0, 2, [1, 7], "stop", id="both at once"),
]


@pytest.mark.parametrize(("stop", "min_tokens", "max_tokens", "offered", "reason"), ENDS)
def test_ends(stop, min_tokens: int, max_tokens: int, offered: list[int], reason: str) -> None:
    seq = sequence([1], max_tokens, stop=stop, min_tokens=min_tokens)
    events = [seq.accept(token) for token in offered]
    assert [event.token for event in events] == seq.tokens == offered
    assert [event.finish_reason for event in events] == [None] * (len(offered) - 1) + [reason]
    assert seq.finish_reason == reason


def test_an_end_without_a_token() -> None:
    seq = sequence([1], 9)
    seq.accept(5)
    assert seq.end("abort") == Event(seq, None, "", "abort") and seq.tokens == [5]


def test_events_are_immutable() -> None:
    event = sequence([1], 9).accept(5)
    with pytest.raises(AttributeError):
        event.token = 6  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("seed", "index", "expected"), [(3, 0, 3), (3, 2, 5), (2**64 - 1, 1, 0)])
def test_completions_have_consecutive_seeds(seed: int, index: int, expected: int) -> None:
    assert Sequence(request([1], seed=seed), index).seed == expected
