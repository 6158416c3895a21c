"""Runs the probes in a process of their own, one at a time and each within a time.

A probe may leave a CUDA error behind that no later call of its process gets rid of, may hang, or
may end the process: whatever it does, the next one gets a process that works.
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

START_SECONDS = 90.0  # for a process to start, load CUDA and say what machine this is
PROBE_SECONDS = 30.0  # for a probe, the first compilation included
_START = "import sys; sys.path[:] = sys.argv[1:]; from ostinato.tools.limits.worker import main; main()"


def command() -> list[str]:
    """Starts a worker; modules come from where ours do, not from the working directory."""
    return [interpreter(), "-c", _START, *sys.path]


@dataclass
class Report:
    """Outcomes in the order of the probes, and the machine they are of."""

    machine: dict[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)


class Worker:
    """A process that runs probes. DeviceError if it finds no GPU or does not start."""

    def __init__(self, start: list[str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._child: Child | None = None
        answer: dict[str, Any]
        try:
            self._child = Child(start, self._errors)
            answer = self._child.answer(START_SECONDS)
        except (OSError, Timeout, Ended) as e:
            answer = {"failed": f"the process for the probes does not start: {self._told(e)}"}
        if "failed" in answer:
            self.close()
            raise DeviceError(f"--graph-limits: {answer['failed']}")
        self.machine: dict[str, str] = answer["machine"]

    def ask(self, name: str, seconds: float) -> tuple[Outcome, bool]:
        """The outcome of a probe, and whether this process can run another one."""
        assert self._child is not None
        self._child.tell(name)
        try:
            answer: dict[str, Any] = self._child.answer(seconds)
        except (Timeout, Ended) as e:
            return Outcome(name, "broken", detail=self._told(e)), False
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

    def _told(self, e: Exception) -> str:
        """What happened, and the last line that the process wrote."""
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

    progress: told each name before it runs. start: the command of a worker, for tests."""
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
                    gone = f"after the probe before: {e}"
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
