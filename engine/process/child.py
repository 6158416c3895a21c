"""A process that answers one line of JSON on its stdin by one on its stdout, within a time: for what may hang or die.

It belongs to the process that started it. One that was forked later has copies of the pipes, and may only close them.
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

LOOK = 0.5  # seconds after which a silent process is looked at: another one may hold its end of the pipe open


class Silent(Exception):
    """There was no answer in time."""


class Ended(Exception):
    """The process ended instead of answering; status as of subprocess: negative for a signal."""

    def __init__(self, status: int) -> None:
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        super().__init__(f"the process {how}")
        self.status = status


def interpreter() -> str:
    """The Python that runs this. OSError in a program that embeds Python and does not say where one is."""
    if not sys.executable:
        raise OSError("sys.executable: expected the path of a Python interpreter, found none")
    return sys.executable


class Child:
    """Runs `command` until close(), or until this object or the interpreter goes. OSError if it cannot be started.

    stderr: a file for what the process writes there; None: nowhere. Ctrl-C does not reach the process."""

    def __init__(self, command: list[str], stderr: Any = None) -> None:
        errors, pipe = subprocess.DEVNULL if stderr is None else stderr, subprocess.PIPE
        with _without_ctrl_c():
            # bufsize 0: what is still to be written is in _unsent, not in a buffer that a forked process writes as well
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
        """End the process; a thread that waits for its answer gets Ended."""
        self._process.kill()

    def tell(self, message: Any) -> None:
        """Have a message sent by the next answer(), which notices as well that the process has ended."""
        self._unsent += json.dumps(message).encode() + b"\n"

    def answer(self, seconds: float) -> dict[str, Any]:
        """Send what was told; the next answer. Silent or Ended if there is none."""
        found, deadline = bytearray(), time.monotonic() + seconds
        while not found.endswith(b"\n"):
            ready = self._wait(max(0.0, min(LOOK, deadline - time.monotonic())))
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
                raise Silent(f"no answer within {seconds:g} s")
        return json.loads(found)

    def _wait(self, seconds: float) -> list[Any]:
        """Which of the two pipes can be used now. Not select(), which knows no descriptor above 1023."""
        if self._stdout.closed:  # by a signal handler, or by another thread
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
        except BrokenPipeError:  # it has ended: its last answer may still be there to be read
            self._unsent = b""


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside never get SIGINT, not even before their first line runs: it is for who started them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _finish(process: subprocess.Popen[bytes], owner: int) -> None:
    """Close the pipes, and kill the process if it is ours."""
    ours = os.getpid() == owner
    if ours:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if ours:
        process.wait()
    else:
        process.returncode = 0  # or Popen would look for a child that is not there, and warn
