"""Runs the probes one at a time in a worker process, each with a time limit.

A probe may leave a sticky CUDA error, hang, or kill its process. Whatever happens, the next probe gets a process that
works.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import DeviceError
from ...process.child import Child, Ended, Timeout, interpreter
from .probe import Outcome

START_SECONDS = 90.0  # limit for a process to start, load CUDA and describe the machine
PROBE_SECONDS = 30.0  # limit for a probe, including the first compilation
_START = "import sys; sys.path[:] = sys.argv[1:]; from ostinato.tools.limits.worker import main; main()"


def command() -> list[str]:
    """The command that starts a worker. It imports from this process's sys.path, not from the working directory."""
    return [interpreter(), "-c", _START, *sys.path]


@dataclass
class Report:
    """Outcomes in probe order, and the machine they were measured on."""

    machine: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


class Worker:
    """A process that runs probes. DeviceError if it does not start or finds no GPU."""

    def __init__(self, start: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open while the process runs
        self._child: Child | None = None
        answer: dict[str, Any]
        try:
            self._child = Child(start, self._errors)
            answer = self._child.answer(START_SECONDS)
        except (OSError, Timeout, Ended) as e:
            answer = {"failed": f"the worker process does not start: {self._described(e)}"}
        if "failed" in answer:
            self.close()
            raise DeviceError(f"--graph-limits: {answer['failed']}")
        self.machine: dict[str, str] = answer["machine"]

    def ask(self, name: str, seconds: float) -> tuple[Outcome, bool]:
        """(outcome of a probe, whether this process can run another one)."""
        assert self._child is not None
        self._child.tell(name)
        try:
            answer: dict[str, Any] = self._child.answer(seconds)
        except (Timeout, Ended) as e:
            return Outcome(name, "broken", detail=self._described(e)), False
        outcome, spoiled = Outcome(**answer["outcome"]), answer["spoiled"]
        if spoiled:
            left = f"leaves the process unusable ({spoiled})"
            outcome = replace(outcome, detail="; ".join(filter(None, (outcome.detail, left))))
        return outcome, not spoiled

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.close()
        self._errors.close()

    def _described(self, e: Exception) -> str:
        """The error, and the last line that the process wrote to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return ": ".join(filter(None, (str(e), last[:200])))


def run(
    names: Iterable[str],
    progress: Callable[[str], None] = lambda name: None,
    start: list[str] | None = None,
    seconds: float = PROBE_SECONDS,
) -> Report:
    """Run the probes of these names in order. DeviceError without a GPU.

    progress: called with each name before it runs. start: the command of a worker, for tests."""
    report, worker, gone = Report(), None, ""
    try:
        for name in names:
            progress(name)
            if worker is None and not gone:
                try:
                    worker = Worker(start or command())
                except DeviceError as e:
                    if not report.outcomes:
                        raise
                    gone = f"no worker after the previous probe: {e}"
            if worker is None:
                report.outcomes.append(Outcome(name, "not run", detail=gone))
                continue
            report.machine = worker.machine
            outcome, usable = worker.ask(name, seconds)
            report.outcomes.append(outcome)
            if not usable:
                worker.close()
                worker = None
    finally:
        if worker is not None:
            worker.close()
    return report
