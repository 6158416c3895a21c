"""A child process for work that may hang or crash. It answers each line of JSON on stdin by one on stdout.

The child belongs to the process that started it. A process forked later has copies of the pipes, and only closes them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from typing import Any

POLL = 0.5  # seconds between checks that the process lives: another process may hold its end of the pipe open


class Timeout(Exception):
    """The process gave no answer in time."""


class Ended(Exception):
    """The process ended without an answer. status: as in subprocess, negative for a signal."""

    def __init__(self, status: int) -> None:
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        super().__init__(f"the process {how}")
        self.status = status


def interpreter() -> str:
    """Path of the running Python interpreter. OSError in a program that embeds Python without setting it."""
    if not sys.executable:
        raise OSError("sys.executable: expected the path of a Python interpreter, found none")
    return sys.executable


class Child:
    """A process that runs `command` until close(), or until this object is deleted or the interpreter exits.

    stderr: a file for its stderr; None discards it. The process does not receive Ctrl-C. OSError if it cannot start."""

    def __init__(self, command: list[str], stderr: Any = None) -> None:
        errors, pipe = subprocess.DEVNULL if stderr is None else stderr, subprocess.PIPE
        with _without_ctrl_c():
            # bufsize=0: pending output is in _unsent, not in a buffer that a forked process would flush as well
            self._process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=errors)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._stdin, self._stdout, self._unsent = self._process.stdin, self._process.stdout, b""
        os.set_blocking(self._stdin.fileno(), False)
        self.close = weakref.finalize(self, _finish, self._process, os.getpid())

    @property
    def returncode(self) -> int | None:
        """None while the process runs."""
        return self._process.returncode

    def kill(self) -> None:
        """End the process. A thread that waits for its answer gets Ended."""
        self._process.kill()

    def tell(self, message: Any) -> None:
        """Queue a message. The next answer() sends it, and also detects that the process has ended."""
        self._unsent += json.dumps(message).encode() + b"\n"

    def answer(self, seconds: float) -> dict[str, Any]:
        """Send the queued messages and return the next answer. Timeout or Ended if there is none."""
        found, deadline = bytearray(), time.monotonic() + seconds
        while not found.endswith(b"\n"):
            ready = self._wait(max(0.0, min(POLL, deadline - time.monotonic())))
            if self._stdin in ready:
                self._send()
            if self._stdout in ready:
                part = os.read(self._stdout.fileno(), 2**20)
                if not part:
                    raise Ended(self._process.wait())
                found += part
            elif not ready and self._process.poll() is not None:
                raise Ended(self._process.wait())
            elif time.monotonic() >= deadline:
                raise Timeout(f"no answer within {seconds:g} s")
        return json.loads(found)

    def _wait(self, seconds: float) -> list[Any]:
        """The pipes that are ready. poll() and not select(), which fails for descriptors above 1023."""
        if self._stdout.closed:  # by a signal handler or another thread
            raise Ended(self._process.wait())
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        if self._unsent:
            poll.register(self._stdin.fileno(), select.POLLOUT)
        found = {fd for fd, _ in poll.poll(seconds * 1e3)}
        return [pipe for pipe in (self._stdin, self._stdout) if not pipe.closed and pipe.fileno() in found]

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin.fileno(), self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the process has ended; its last answer may still be in the pipe
            self._unsent = b""


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside never receive SIGINT, not even before their first line runs: it is for their parent."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finish(process: subprocess.Popen[bytes], owner: int) -> None:
    """Close the pipes. Kill the process if this process, `owner`, started it."""
    ours = os.getpid() == owner
    if ours:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if ours:
        process.wait()
    else:
        process.returncode = 0  # else Popen would look for a child that is not ours, and warn
