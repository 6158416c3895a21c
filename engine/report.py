"""Messages and progress bars on stderr. They never raise: a message that cannot be written is lost."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO, cast

from .process import forks


def say(who: str, what: str) -> None:
    """Write the line "who: what" to stderr, if that is possible."""
    if sys.stderr is None:  # print() would write to stdout
        return
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    stream = _Lossy(sys.stderr)
    stream.write(f"{who}: {what}\n".encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


class _Lossy:
    """A stream wrapper that drops what cannot be written."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tell_warnings() -> None:
    """Print the library's log records as lines on stderr."""
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say("ostinato", record.getMessage())

    logging.getLogger("ostinato").handlers = [Lines()]


def terminal(stream: object) -> bool:
    """Whether a standard stream, which may be None or closed, is a terminal."""
    try:
        return stream.isatty()  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, ValueError):
        return False


def print_json(value: Any, indent: int | None = None) -> None:
    """Print JSON on stdout, with \\u escapes if stdout is not UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    print(json.dumps(value, ensure_ascii=encoding not in ("utf-8", "utf8"), indent=indent))


def console(width: int) -> Any:
    """A rich Console on stdout for tables: as wide as the terminal, or `width` columns without a terminal."""
    from rich.console import Console

    return Console(width=None if terminal(sys.stdout) else width)


class Reporter:
    """Messages and progress bars. quiet: no output. Bars are drawn only if stderr is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        """Print one line."""
        if not self.quiet:
            say("ostinato", text)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar as a context manager; it yields a function update(done, all)."""
        if self.quiet or not terminal(sys.stderr):
            yield lambda done, all: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(file=cast("TextIO", _Lossy(sys.stderr))), transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, all: progress.update(task, completed=done, total=all)

    def late_bar(self, label: str, after: float = 2.0) -> LateBar:
        """A bar that appears only if the work takes longer than `after` seconds."""
        return LateBar(self, label, after)


class LateBar:
    """A bar that appears `after` seconds after update(0, all), and ends at update(all, all); it may be used again.

    A timer draws it, because long work may not call update for a long time."""

    def __init__(self, report: Reporter, label: str, after: float) -> None:
        self._report, self._label, self._after = report, label, after
        self._silent = report.quiet or not terminal(sys.stderr)
        self._state = 0, 1
        self._begin()
        forks.in_child(self._forked)

    def _begin(self) -> None:
        self._lock, self._bars, self._timer = threading.Lock(), ExitStack(), threading.Timer(0, str)
        self._drawn: Callable[[int, int], None] | None = None

    def _forked(self) -> None:
        """In a forked child: do not close the parent's bar, which would wait for threads that are not there."""
        forks.never_destroy((self._bars, self._timer))
        self._begin()

    def update(self, done: int, all: int) -> None:
        """Report progress: `done` of `all`."""
        if self._silent:
            return
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

    def stop(self) -> None:
        """End the bar."""
        self._timer.cancel()
        with self._lock:
            bars, self._bars, self._drawn = self._bars, ExitStack(), None
        bars.close()

    def _draw(self, bars: ExitStack) -> None:
        with self._lock:
            if bars is self._bars:  # else the work has ended
                self._drawn = bars.enter_context(self._report.bar(self._label))
                self._drawn(*self._state)
