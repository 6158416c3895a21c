"""Text as tokens arrive: stop texts across tokens, what a stream may already give out; and log probabilities."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostinato.outputs import Text, logprobs


class Pieces:
    """A Decoder whose token i is the i-th piece of text; `held` comes at the end."""

    def __init__(self, pieces: list[str], held: str = "") -> None:
        self.pieces, self.held = pieces, held

    def push(self, token: int) -> str:
        return self.pieces[token]

    def flush(self) -> str:
        return self.held


STOPS = [  # pieces, stop, text, settled characters after each piece, stopped
    pytest.param(["ab", "cd"], (), "abcd", [2, 4], False, id="no stop"),
    pytest.param(["ab", "cd"], ("x",), "abcd", [2, 4], False, id="not met"),
    pytest.param(["ab", "cde"], ("d",), "abc", [2, 3], True, id="inside a token"),
    pytest.param(["ab", "cd", "ef"], ("bcde",), "a", [1, 1, 1], True, id="across three tokens"),
    pytest.param(["ab", "cx"], ("bcd",), "abcx", [1, 4], False, id="a prefix that came to nothing"),
    pytest.param(["aa", "ab"], ("aab",), "a", [0, 1], True, id="overlapping beginnings"),
    pytest.param(["x\n", "\nUser:"], ("\n\n", "User:"), "x", [1, 1], True, id="the earliest of two"),
    pytest.param(["", "", "é"], ("é",), "", [0, 0, 0], True, id="empty pieces"),
    pytest.param(["ab"], ("abc",), "ab", [0], False, id="held back until the end"),
]


@pytest.mark.parametrize(("pieces", "stop", "text", "settled", "stopped"), STOPS)
def test_stop_texts(pieces: list[str], stop: tuple[str, ...], text: str, settled: list[int], stopped: bool) -> None:
    got = Text(Pieces(pieces), stop)  # pyright: ignore[reportArgumentType]
    seen = ""
    for i, expected in enumerate(settled):
        got.push(i)
        assert got.settled == expected
        seen += got.full[len(seen) : got.settled]
    got.flush()
    assert (got.full, got.stopped, got.settled) == (text, stopped, len(text))
    assert text.startswith(seen)  # nothing that was given out is taken back


def test_what_the_decoder_held_back_counts_too() -> None:
    text = Text(Pieces(["a"], held="\ufffd"), ("\ufffd",))  # pyright: ignore[reportArgumentType]
    text.push(0)
    text.flush()
    assert (text.full, text.stopped) == ("a", True)


def test_a_stop_text_before_min_tokens_does_not_count_later_either() -> None:
    text = Text(Pieces(["xab", "cab", "dab"]), ("ab",))  # pyright: ignore[reportArgumentType]
    text.push(0, search=False)
    assert not text.stopped
    text.push(1)
    assert (text.full, text.stopped) == ("xabc", True)


@pytest.mark.parametrize(
    ("top", "token", "ids"),
    [
        pytest.param(0, 2, [2], id="only the token itself"),
        pytest.param(2, 1, [3, 1], id="among the best"),
        pytest.param(2, 2, [3, 1, 2], id="not among the best"),
        pytest.param(3, 3, [3, 1, 0], id="equals in the order of ids"),
        pytest.param(20, 4, [3, 1, 0, 4, 2], id="more than there are"),
    ],
)
def test_logprobs(top: int, token: int, ids: list[int]) -> None:
    row = np.array([1.0, 2.0, 0.0, 3.0, 1.0], np.float32)
    got = logprobs(row, token, top)
    assert list(got) == ids
    total = math.log(sum(math.exp(v) for v in row.tolist()))
    assert all(value == pytest.approx(float(row[i]) - total) for i, value in got.items())


def test_logprobs_of_huge_and_banned_logits_are_finite() -> None:
    got = logprobs(np.array([3e38, -1e30, 3e38], np.float32), 1, 2)
    assert got[0] == pytest.approx(-math.log(2)) and all(math.isfinite(v) for v in got.values())
