"""The progress bar of a prompt: appears on a terminal if prefill takes long, and disappears at its end."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from small import events, request, runner, sequence

from ostinato import report
from ostinato.report import Reporter
from ostinato.run.engine import Engine


class Bars:
    """A log of drawn bars: "begin", (done, all), "end"."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terminal: bool = True) -> None:
        self.drawn: list[object] = []
        self.begun = threading.Event()
        monkeypatch.setattr(report.sys.stderr, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(Reporter, "bar", self.bar)

    @contextmanager
    def bar(self, label: str) -> Iterator:
        self.drawn.append("begin")
        yield self.draw
        self.drawn.append("end")

    def draw(self, done: int, all: int) -> None:
        self.drawn.append((done, all))
        self.begun.set()


def test_a_bar_appears_without_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars(monkeypatch)
    bar = Reporter(quiet=False).late_bar("prompt", after=0.01)
    bar.update(0, 9)
    assert bars.begun.wait(10)
    bar.update(5, 9)
    bar.update(9, 9)
    assert bars.drawn == ["begin", (0, 9), (5, 9), "end"]
    bar.update(0, 4)
    bar.stop()
    assert bars.drawn.count("begin") == bars.drawn.count("end")


def test_a_lost_terminal_does_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            self.write("")

    monkeypatch.setattr(report.sys, "stderr", Gone())
    with Reporter(quiet=False).bar("weights") as bar:
        bar(1, 2)
    late = Reporter(quiet=False).late_bar("prompt", after=0)
    late.update(0, 2)
    late.update(1, 2)
    late.update(2, 2)


@pytest.mark.parametrize(("quiet", "terminal", "after"), [
    pytest.param(False, True, 60, id="done-before"), pytest.param(True, True, 0, id="quiet"),
    pytest.param(False, False, 0, id="no-terminal"),
])  # fmt: skip
def test_no_bar(monkeypatch: pytest.MonkeyPatch, quiet: bool, terminal: bool, after: float) -> None:
    bars, alive = Bars(monkeypatch, terminal), threading.active_count()
    bar = Reporter(quiet).late_bar("prompt", after)
    for done in range(3):
        bar.update(done, 2)
    assert bars.drawn == []
    assert threading.active_count() <= alive + 1  # a cancelled timer may need a moment to end


def test_a_bar_ends_when_the_prompt_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = Bars(monkeypatch)
    bar = Reporter(quiet=False).late_bar("prompt", after=0.01)

    def broken(done: int, all: int) -> None:
        bar.update(done, all)
        if done == 64:
            assert bars.begun.wait(10)
            raise KeyboardInterrupt

    engine = Engine(runner(prefill_rows=64), progress=broken)
    engine.add(request([1] * 300, 1))
    with pytest.raises(KeyboardInterrupt):
        while True:
            engine.step()
    assert bars.drawn[-1] == "end"


@pytest.mark.parametrize(("slots", "expected"), [
    pytest.param(2, [(0, 90), (64, 90), (70, 90), (70, 100), (90, 100), (100, 100)], id="together"),
    pytest.param(1, [(0, 70), (64, 70), (70, 70), (0, 20), (20, 20), (0, 10), (10, 10)], id="in-turn"),
])  # fmt: skip
def test_progress_of_prompts_that_run_together(slots: int, expected: list[tuple[int, int]]) -> None:
    told: list[tuple[int, int]] = []
    on = runner(max_batch=slots, prefill_rows=64)
    batch = [sequence([1] * 70, 1), sequence([2] * 20, 1), sequence([3] * 10, 1)]
    for _ in events(on, batch, progress=lambda done, all: told.append((done, all))):
        pass
    assert list(dict.fromkeys(told)) == expected
