"""A child process that renders one chat template within bounds of time and memory; see template_worker.py.

template.py owns one for each template. The child starts at the first rendering, stays for the next ones, and is
replaced when a rendering has ended it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from .errors import RequestError, TokenizerError

PATIENCE = 30.0  # seconds on the clock for an answer, start of the process included; processor time is bounded in it
_START = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_path(sys.argv[2], None, '__main__')"


class Sandbox:
    """Renders `template`; `source` names it in messages."""

    def __init__(self, template: str, source: str):
        self._template, self._source = template, source
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._end: Any = None  # ends the child; at the latest when this object or the interpreter goes

    def render(self, renderings: list[dict[str, Any]]) -> list[str]:
        """One text for each dict of variables.

        RequestError when the template refuses the messages, TokenizerError when it is wrong or exceeds its bounds."""
        with self._lock:
            try:
                reply = self._ask({"renderings": renderings})
            except BaseException:  # also Ctrl-C: the answer would be taken for that of the next question
                self.close()
                raise
        if "refused" in reply:
            raise RequestError(f"messages: refused by the chat template: {reply['refused']}")
        if "failed" in reply:
            raise self._error(reply["failed"])
        return reply["texts"]

    def close(self) -> None:
        """End the child process; the next rendering starts another."""
        if self._end is not None:
            self._end()
        self._child = self._end = None

    def _error(self, what: str) -> TokenizerError:
        return TokenizerError(f"{self._source}: chat template: {' '.join(what.split())}")

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and reading will tell why
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
        answer, deadline = bytearray(), time.monotonic() + PATIENCE
        while not answer.endswith(b"\n"):
            if not select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._error(f"no answer within {PATIENCE:g} s")
            part = os.read(child.stdout.fileno(), 2**20)
            if not part:
                raise self._ended(child.wait())
            answer += part
        return json.loads(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        worker = str(Path(__file__).with_name("template_worker.py"))
        # -I: nothing in the working directory or the environment is imported; packages come from where ours do
        command = [sys.executable, "-I", "-c", _START, json.dumps(sys.path), worker]
        try:
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError as e:
            raise self._error(f"cannot start a process to render it: {e}") from e
        self._child, self._end = child, weakref.finalize(self, _finish, child)
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps({"template": self._template}).encode() + b"\n")
        return child

    def _ended(self, status: int) -> TokenizerError:
        if status == -signal.SIGPROF:
            return self._error("rendering takes too long (more than half a second of processor time)")
        if status < 0:
            return self._error(f"rendering ended by {signal.Signals(-status).name}")
        return self._error(f"the process to render it ended with status {status} (it needs jinja2 and Linux)")


def _finish(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and close the pipes."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # closing writes what is left to write
                pipe.close()
    child.wait()
