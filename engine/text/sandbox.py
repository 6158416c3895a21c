"""A child process that renders one chat template within bounds of time and memory; see template_worker.py.

There is one for each template. The child starts at the first rendering, stays for the next ones, and is replaced when a
rendering has ended it. A process that was forked starts a child of its own.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from ..errors import RequestError, TokenizerError
from ..process import forks
from ..process.child import Child, Ended, Silent, interpreter

PATIENCE = 30.0  # seconds on the clock for an answer, start of the process included; processor time is bounded in it
_START = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_path(sys.argv[2], None, '__main__')"


class Sandbox:
    """Renders `template`; `source` names it in messages."""

    def __init__(self, template: str, source: str):
        self._template, self._source = template, source
        self._lock = forks.Lock()
        self._child: Child | None = None
        forks.in_child(self._drop)

    def render(self, renderings: list[dict[str, Any]]) -> list[str]:
        """One text for each dict of variables.

        RequestError when the template refuses the messages, TokenizerError when it is wrong or exceeds its bounds."""
        with self._lock:
            try:
                reply = self._ask({"renderings": renderings})
            except BaseException:  # also Ctrl-C: the answer would be taken for that of the next question
                self._drop()
                raise
        if "refused" in reply:
            raise RequestError(f"messages: refused by the chat template: {reply['refused']}")
        if "failed" in reply:
            raise self._error(reply["failed"])
        return reply["texts"]

    def close(self) -> None:
        """End the child process, and the rendering of another thread; the next rendering starts another."""
        if (child := self._child) is not None:
            child.kill()
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _error(self, what: str) -> TokenizerError:
        return TokenizerError(f"{self._source}: chat template: {' '.join(what.split())}")

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        child = self._child = self._child or self._start()
        child.tell(question)
        try:
            return child.answer(PATIENCE)
        except Silent as e:
            raise self._error(str(e)) from None
        except Ended as e:
            raise self._ended(e.status) from None

    def _start(self) -> Child:
        worker = str(Path(__file__).with_name("template_worker.py"))
        try:
            # -I: nothing in the working directory or the environment is imported; packages come from where ours do
            child = Child([interpreter(), "-I", "-c", _START, json.dumps(sys.path), worker])
        except OSError as e:
            raise self._error(f"cannot start a process to render it: {e}") from e
        child.tell({"template": self._template})
        return child

    def _ended(self, status: int) -> TokenizerError:
        if status == -signal.SIGPROF:
            return self._error("rendering takes too long (more than half a second of processor time)")
        if status == 0:  # as Popen has it where SIGCHLD is ignored, or somebody else waits for our children
            return self._error("the process to render it ended, and why is not known: this process ignores SIGCHLD")
        if status < 0:
            return self._error(f"rendering ended by {signal.Signals(-status).name}")
        return self._error(f"the process to render it ended with status {status} (it needs jinja2 and Linux)")
