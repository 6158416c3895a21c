"""Lines and progress bars on stderr. None of them ever fails: what they tell is less than what is going on."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def say(who: str, what: str) -> None:
    """The line "who: what" on stderr, if there is one (a service has none, a terminal may be gone, a disk full)."""
    stream = sys.stderr
    if stream is None:  # print() would take stdout instead
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    with suppress(OSError, ValueError):  # ValueError: it was closed
        stream.write(f"{who}: {what}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def terminal(stream: object) -> bool:
    """Whether sys.stdin, stdout or stderr, which may be None or closed, is a terminal."""
    try:
        return stream.isatty()  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, ValueError):
        return False


def print_json(value: Any, indent: int | None = None) -> None:
    """A line of JSON on stdout, with \\u escapes where stdout is not UTF-8."""
    encoding = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("_", "-")
    print(json.dumps(value, ensure_ascii=encoding not in ("utf-8", "utf8"), indent=indent))


def console(width: int) -> Any:
    """A rich Console on stdout for tables: as wide as the terminal, or `width` columns where there is none."""
    from rich.console import Console

    return Console(width=None if terminal(sys.stdout) else width)


class Reporter:
    """quiet: nothing at all. Bars are drawn only if stderr is a terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            say("ostinato", text)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """A progress bar; call what it gives with (done, all)."""
        if self.quiet or not terminal(sys.stderr):
            yield lambda done, all: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, all: progress.update(task, completed=done, total=all)
