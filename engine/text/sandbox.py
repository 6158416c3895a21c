"""A child process that renders one chat template with limits on time and memory. It runs template_worker.py.

Each template has its own child. The child starts at the first rendering and serves all later ones. If a rendering ends
it, the next one starts another. A forked process starts its own child.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from ..errors import RequestError, TokenizerError
from ..process import forks
from ..process.child import Child, Ended, Timeout, interpreter

TIMEOUT = 30.0  # wall-clock seconds for an answer, process start included; the child limits its own CPU time
_START = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_path(sys.argv[2], None, '__main__')"


class Sandbox:
    """Renders `template`. source: its name in messages."""

    def __init__(self, template: str, source: str):
        self._template, self._source = template, source
        self._lock = forks.Lock()
        self._child: Child | None = None
        forks.in_child(self._drop)

    def render(self, renderings: list[dict[str, Any]]) -> list[str]:
        """One text for each dict of template variables.

        RequestError if the template refuses the messages; TokenizerError if it is invalid or exceeds a limit."""
        with self._lock:
            try:
                reply = self._ask({"renderings": renderings})
            except BaseException:  # also Ctrl-C: its late answer must not be read as the next one
                self._drop()
                raise
        if "refused" in reply:
            raise RequestError(f"messages: refused by the chat template: {reply['refused']}")
        if "failed" in reply:
            raise self._error(reply["failed"])
        return reply["texts"]

    def close(self) -> None:
        """End the child process, even while another thread waits for it. The next rendering starts a new one."""
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
            return child.answer(TIMEOUT)
        except Timeout as e:
            raise self._error(str(e)) from None
        except Ended as e:
            raise self._ended(e.status) from None

    def _start(self) -> Child:
        worker = str(Path(__file__).with_name("template_worker.py"))
        try:
            # -I: no import from the working directory or the environment; sys.path is passed explicitly
            child = Child([interpreter(), "-I", "-c", _START, json.dumps(sys.path), worker])
        except OSError as e:
            raise self._error(f"the renderer cannot be started: {e}") from e
        child.tell({"template": self._template})
        return child

    def _ended(self, status: int) -> TokenizerError:
        if status == -signal.SIGPROF:
            return self._error("rendering takes too long (more than half a second of CPU time)")
        if status == 0:  # Popen reports 0 if SIGCHLD is ignored or other code reaps the children
            return self._error("the renderer ended for an unknown reason, as this process ignores SIGCHLD")
        if status < 0:
            return self._error(f"the renderer was ended by {signal.Signals(-status).name}")
        return self._error(f"the renderer ended with status {status} (it needs jinja2 and Linux)")
