"""Ctrl-C at any line of the engine: the call ends, the LLM remains usable, no thread waits forever."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import ostinato
from ostinato import LLM, SamplingParams, Stream
from ostinato.run.runner import Ticket

HOT = SamplingParams(temperature=1.5, seed=11, max_tokens=3, ignore_eos=True)
LONG = SamplingParams(temperature=1.5, seed=11, max_tokens=40, ignore_eos=True)
ENGINE = Path(ostinato.__file__).parent
PARTS = ["engine", "turn", "handle", "batch", "scheduler", "cache", "pages", "waiting"]
NAMES = ["llm", "stream", "process/interrupts", *(f"run/{part}" for part in PARTS)]
FILES = {str(ENGINE / f"{name}.py") for name in NAMES}
CASES: dict[str, Callable[[LLM], Any]] = {
    "generate": lambda llm: llm.generate("ab", HOT),
    "two prompts": lambda llm: llm.generate(["ab", "c"], HOT),
    "stream": lambda llm: read(llm.stream("ab", HOT)),
    "closed stream": lambda llm: llm.stream("ab", HOT).close(),
    "logits": lambda llm: llm.logits([1, 2, 3], 2),
}


def read(stream: Stream) -> None:
    """Read a stream to its end and close it: Python would swallow a KeyboardInterrupt in a finalizer."""
    with stream:
        for _ in stream:
            pass


@contextmanager
def lines(at: int = -1) -> Iterator[list[int]]:
    """Count the lines of FILES that this thread executes; send SIGINT before line number `at`."""
    count = [0]

    def line(frame: FrameType, event: str, arg: Any) -> Any:
        count[0] += event == "line"
        if event == "line" and count[0] == at:
            signal.raise_signal(signal.SIGINT)
        return line

    def call(frame: FrameType, event: str, arg: Any) -> Any:
        return line if frame.f_code.co_filename in FILES else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield count
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("others", [False, True], ids=["alone", "with others"])
@pytest.mark.parametrize("call", CASES.values(), ids=CASES)
def test_ctrl_c_at_any_line(llm: LLM, call: Callable[[LLM], Any], others: bool) -> None:
    alone, stop = llm.generate("ab", LONG)[0].token_ids, threading.Event()

    def neighbour() -> bool:
        same = True
        while not stop.is_set():
            same = same and llm.generate("ab", LONG)[0].token_ids == alone
        return same

    assert all(Path(file).is_file() for file in FILES)
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(neighbour) if others else None
        try:
            with lines() as count:
                call(llm)
            for at in range(1, count[0] + 1, 23 if others else 17):
                with pytest.raises(KeyboardInterrupt), lines(at) as count:
                    call(llm)
                    if count[0] < at:
                        raise KeyboardInterrupt  # another thread ran the engine, so this one executed fewer lines
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
                assert pool.submit(llm.generate, "ab", HOT).result(5)[0].token_ids == alone[:3], f"line {at}"
                assert others or llm.runner.table.free == llm.runner.table.pages - 1, f"line {at}"
        finally:
            stop.set()
        assert running is None or running.result(5)


def test_ctrl_c_wakes_a_thread_that_waits_for_another(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step of the other thread continues."""
    tokens, begun, go = Ticket.tokens, threading.Event(), threading.Event()

    def slow(self: Ticket) -> np.ndarray:
        begun.set()
        assert go.wait(10)
        return tokens(self)

    def interrupt() -> None:
        while not llm.engine._turn._sleepers:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(Ticket, "tokens", slow)
        other = pool.submit(llm.generate, "ab", HOT)
        assert begun.wait(5)
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate("c", HOT)
        assert not other.done()
        go.set()
        assert other.result(5)[0].completion_tokens == 3
