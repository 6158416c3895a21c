"""Progress bars and single lines on stderr while a model loads. Called by llm.py; silent when asked to be."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager


class Reporter:
    """quiet: nothing at all. Bars are drawn only if stderr is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            print(f"ostinato: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; call what it gives with (done, all)."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, all: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, all: progress.update(task, completed=done, total=all)

    @contextmanager
    def late_bar(self, label: str, after: float = 2.0) -> Iterator[Callable[[int, int], None]]:
        """Like bar, drawn once (0, all) was `after` seconds ago and gone with (all, all); then the next may come."""
        if self.quiet or not sys.stderr.isatty():
            yield lambda done, all: None
            return
        late = _Late(self, label, after)
        try:
            yield late.update
        finally:
            late.stop()


class _Late:
    """A bar that a timer starts, as work that takes long may say nothing for longer."""

    def __init__(self, report: Reporter, label: str, after: float) -> None:
        self._report, self._label, self._after = report, label, after
        self._lock, self._bars, self._timer = threading.Lock(), ExitStack(), threading.Timer(0, str)
        self._state, self._drawn = (0, 1), None

    def update(self, done: int, all: int) -> None:
        if done >= all:
            self.stop()
            return
        if not done:
            self.stop()
            self._timer = threading.Timer(self._after, self._draw, (self._bars,))
            self._timer.daemon = True
            self._timer.start()
        with self._lock:
            self._state = done, all
            if self._drawn is not None:
                self._drawn(done, all)

    def _draw(self, bars: ExitStack) -> None:
        with self._lock:
            if bars is self._bars:  # else it is over meanwhile
                self._drawn = bars.enter_context(self._report.bar(self._label))
                self._drawn(*self._state)

    def stop(self) -> None:
        self._timer.cancel()
        with self._lock:
            bars, self._bars, self._drawn = self._bars, ExitStack(), None
        bars.close()
