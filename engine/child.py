"""A process that answers one line of JSON on its stdin by one on its stdout, within a time: for what may hang or die.

Started by sandbox.py (chat templates) and limits/runner.py (probes of a GPU).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
import weakref
from typing import Any


class Silent(Exception):
    """There was no answer in time."""


class Ended(Exception):
    """The process ended instead of answering; status as of subprocess: negative for a signal."""

    def __init__(self, status: int) -> None:
        how = f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"
        super().__init__(f"the process {how}")
        self.status = status


class Child:
    """Runs `command` until close(), or until this object or the interpreter goes. OSError if it cannot be started.

    stderr: a file for what the process writes there; None: nowhere."""

    def __init__(self, command: list[str], stderr: Any = None) -> None:
        errors = subprocess.DEVNULL if stderr is None else stderr
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        self.close = weakref.finalize(self, _finish, self._process)

    @property
    def returncode(self) -> int | None:
        """None while the process runs."""
        return self._process.returncode

    def tell(self, message: Any) -> None:
        """Send a message; that the process has ended is noticed by answer()."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer. Silent or Ended if there is none."""
        assert self._process.stdout is not None
        found, deadline = bytearray(), time.monotonic() + seconds
        while not found.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Silent(f"no answer within {seconds:g} s")
            part = os.read(self._process.stdout.fileno(), 2**20)
            if not part:
                raise Ended(self._process.wait())
            found += part
        return json.loads(found)


def _finish(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and close the pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # closing writes what is left to write
                pipe.close()
    process.wait()
