"""Standard input of the command, as a whole or line by line."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator

from ..errors import RequestError
from ..report import say, terminal


def read() -> str:
    """All of stdin. RequestError if it cannot be read or decoded."""
    with _readable():
        return _decoded(sys.stdin.read())


def lines() -> Iterator[str]:
    """Stripped lines that are not empty. A terminal gets a prompt and line editing.

    A line that cannot be decoded is reported on stderr and skipped. RequestError if stdin cannot be read."""
    interactive = terminal(sys.stdin)
    if interactive:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  its import gives input() line editing
    while True:
        try:
            with _readable():
                line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return
        if not (line or interactive):
            return
        try:
            line = _decoded(line.strip())
        except RequestError as e:
            say("ostinato", str(e))
            continue
        if line:
            yield line


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Inside, invalid bytes are read as lone surrogates. An error would lose the text after them."""
    if getattr(sys.stdin, "errors", None) == "strict":
        sys.stdin.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    except OSError as e:
        raise RequestError(f"stdin: cannot be read: {e.strerror}") from e


def _decoded(text: str) -> str:
    if bad := re.search("[\udc80-\udcff]", text):
        byte = ord(bad[0]) - 0xDC00
        where = f"after {bad.start()} characters"
        raise RequestError(f"stdin: expected {sys.stdin.encoding}, found byte 0x{byte:02x} {where}")
    return text
