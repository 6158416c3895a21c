"""Progress bars and single lines on stderr while a model loads. Called by llm.py; silent when asked to be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
