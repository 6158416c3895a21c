"""Text of arriving tokens: stop texts across tokens, text that a stream may already yield; and log probabilities."""

from __future__ import annotations

import math
import random
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ostinato.outputs import logprobs
from ostinato.text.output_text import Text
from ostinato.text.stop_search import StopSearch


class Pieces:
    """A Decoder whose token i is piece i of the text; "<|" begins a control token; `held` is the last piece."""

    def __init__(self, pieces: list[str], held: str = "") -> None:
        self.pieces, self.held = pieces, held
        self.left_out = [i for i, piece in enumerate(pieces) if piece.startswith("<|")]

    def push(self, token: int) -> str:
        return self.pieces[token]

    def spelled(self, token: int) -> str:
        return self.pieces[token]

    def flush(self) -> str:
        held, self.held = self.held, ""
        return held


def make(pieces: list[str], stop: tuple[str, ...], held: str = "") -> Text:
    return Text(Pieces(pieces, held), StopSearch(stop) if stop else None)  # pyright: ignore[reportArgumentType]


STOPS = [  # pieces, stop, text, number of final characters after each piece, stopped
    pytest.param(["ab", "cd"], (), "abcd", [2, 4], False, id="no stop"),
    pytest.param(["ab", "cd"], ("x",), "abcd", [2, 4], False, id="not met"),
    pytest.param(["ab", "cde"], ("d",), "abc", [2, 3], True, id="inside a token"),
    pytest.param(["ab", "cd", "ef"], ("bcde",), "a", [1, 1, 1], True, id="across three tokens"),
    pytest.param(["ab", "cx"], ("bcd",), "abcx", [1, 4], False, id="a prefix that came to nothing"),
    pytest.param(["aa", "ab"], ("aab",), "a", [0, 1], True, id="overlapping beginnings"),
    pytest.param(["x\n", "\nUser:"], ("\n\n", "User:"), "x", [1, 1], True, id="the earliest of two"),
    pytest.param(["abcde"], ("bcde", "cd"), "ab", [2], True, id="the one that is complete first"),
    pytest.param(["ab", "cd"], ("d", "bcd", "cd"), "a", [1, 1], True, id="the longest of those that end together"),
    pytest.param(["", "", "é"], ("é",), "", [0, 0, 0], True, id="empty pieces"),
    pytest.param(["ab"], ("abc",), "ab", [0], False, id="held back until the end"),
    pytest.param(["ab", "<|end|>", "c"], (), "abc", [2, 2, 3], False, id="control token without a stop"),
    pytest.param(["ab", "<|end|>"], ("<|end|>",), "ab", [2, 2], True, id="a control token"),
    pytest.param(["ab", "<|end|>", "\nc"], ("<|end|>\n",), "ab", [2, 2, 2], True, id="begins with a control token"),
    pytest.param(["ab", "c", "<|end|>"], ("bc<|end|>",), "a", [1, 1, 1], True, id="ends with a control token"),
    pytest.param(["ab", "<|end|>", "cd"], ("b<|end|>c",), "a", [1, 1, 1], True, id="contains a control token"),
    pytest.param(["a", "<|end|>", "<|go|>"], ("end|><|go",), "a", [1, 1, 1], True, id="parts of two control tokens"),
    pytest.param(["ab", "<|end|>", "d"], ("b<|end|>c",), "abd", [1, 1, 3], False, id="control token held for nothing"),
    pytest.param(["a", "<|end|>", "b"], ("ab",), "ab", [0, 1, 2], False, id="a control token between is seen"),
    pytest.param(["<|en", "<|end|>"], ("<|end|>",), "", [0, 0], True, id="a control token after its own beginning"),
    pytest.param(["x", "<|e|>", "<|e|>"], ("<|e|><|e|>y",), "x", [1, 1, 1], False, id="only control tokens held"),
]


@pytest.mark.parametrize(("pieces", "stop", "text", "certain", "stopped"), STOPS)
def test_stop_texts(pieces: list[str], stop: tuple[str, ...], text: str, certain: list[int], stopped: bool) -> None:
    got = make(pieces, stop)
    seen = ""
    for i, expected in enumerate(certain):
        got.push(i)
        seen += got.take()
        assert len(seen) == expected
    got.flush()
    assert (got.full, got.stopped, seen + got.take()) == (text, stopped, text)  # yielded text is never taken back


@pytest.mark.parametrize("seed", range(20))
def test_stop_texts_are_found_as_a_plain_search_finds_them_however_the_text_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices("ab", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 6))]
    text = "".join(rng.choices("abc", (4, 4, 1), k=60))
    ends = [(text.find(w) + len(w), text.find(w)) for w in words if w in text]
    expected = text[: min(ends)[1]] if ends else text
    cuts = sorted({0, len(text), *rng.choices(range(len(text)), k=rng.randint(0, 40))})
    got = make([text[a:b] for a, b in pairwise(cuts)], tuple(words))
    for i in range(len(cuts) - 1):
        if not got.stopped:
            got.push(i)
    got.flush()
    assert (got.full, got.stopped) == (expected, bool(ends))


def test_a_token_costs_the_same_for_any_number_of_stop_texts() -> None:
    """Counts executed lines of Python, on a text full of beginnings of stop texts."""
    text = "stop number 7 stop or 123 st stop number 9" * 5

    def lines(count: int) -> int:
        stops, ran = StopSearch(f"stop number {i:05}" for i in range(count)), 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal ran
            ran += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            stops.advance("", text)
        finally:
            sys.settrace(before)
        return ran

    assert 200 < lines(10) == lines(20_000)


def test_what_the_decoder_held_back_counts_too() -> None:
    text = make(["a"], ("\ufffd",), held="\ufffd")
    text.push(0)
    text.flush()
    assert (text.full, text.stopped) == ("a", True)


@pytest.mark.parametrize(
    ("pieces", "stop", "ignored", "text"),
    [
        pytest.param(["xab", "cab", "dab"], ("ab",), 1, "xabc", id="text"),
        pytest.param(["a", "<|end|>", "b", "<|end|>"], ("<|end|>",), 2, "ab", id="control token"),
        pytest.param(["a", "b", "c", "d"], ("ab", "abcd"), 2, "", id="a longer one goes on"),
    ],
)
def test_a_stop_text_before_min_tokens_does_not_count_later_either(
    pieces: list[str], stop: tuple[str, ...], ignored: int, text: str
) -> None:
    got = make(pieces, stop)
    for i in range(len(pieces)):
        assert not got.stopped
        got.push(i, search=i >= ignored)
        if got.stopped:
            break
    assert (got.full, got.stopped) == (text, True)


def test_a_stop_text_passed_over_is_not_held_back() -> None:
    got = make(["ab"], ("ab", "bx"))
    got.push(0, search=False)
    assert got.take() == "a"  # the rest may begin another stop text


@pytest.mark.parametrize(
    ("pieces", "stop", "held", "text", "stopped"),
    [
        pytest.param(["ab", "cd"], (), "", "ab", False, id="its text is left out"),
        pytest.param(["ab.", "<|end|>"], (".<|end|>",), "", "ab", True, id="a stop text ends with it"),
        pytest.param(["ab", "cd"], ("bc",), "", "a", True, id="a stop text ends in it"),
        pytest.param(["ab", "cd"], ("bx",), "", "ab", False, id="what was held back is not lost"),
        pytest.param(["ab", "cd"], (), "\ufffd", "ab\ufffd", False, id="after half a character"),
    ],
)
def test_end_with_a_stop_token(pieces: list[str], stop: tuple[str, ...], held: str, text: str, stopped: bool) -> None:
    got = make(pieces, stop, held)
    got.push(0)
    got.end(1)
    got.flush()
    assert (got.full, got.stopped) == (text, stopped)


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
