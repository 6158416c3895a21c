"""The worker process: reads the name of a probe, runs it, and answers; every message is one line of JSON.

Output of libraries goes to stderr. After each probe the worker checks that the GPU still works in this process. If not,
`spoiled` in the answer holds the error, and the next probe needs a new process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ...errors import DeviceError
from .probe import CannotRun, Outcome, Probe, Refused, Wrong


def outcome(probe: Probe, lab: Any) -> Outcome:
    """Run one probe. An unexpected exception becomes the outcome "not run" with its text."""
    try:
        return Outcome(probe.name, "supported", detail=probe.run(lab))
    except Refused as e:
        return Outcome(probe.name, "refused", e.error, e.text, e.detail)
    except Wrong as e:
        return Outcome(probe.name, "wrong", detail=str(e))
    except CannotRun as e:
        return Outcome(probe.name, "not run", detail=str(e))
    except Exception as e:
        return Outcome(probe.name, "not run", detail=" ".join(f"the probe fails: {type(e).__name__}: {e}".split()))


def serve(names: Iterable[str], probes: Mapping[str, Probe], make_lab: Callable[[], Any]) -> Iterator[dict[str, Any]]:
    """Yield {"machine": ...} or {"failed": ...}, then one answer per name."""
    try:
        yield {"machine": make_lab().device.about()}
    except DeviceError as e:
        yield {"failed": str(e)}
        return
    for name in names:
        answer, spoiled = Outcome(name, "not run", detail="the GPU does not work in this process"), ""
        try:
            with make_lab() as lab:
                answer = outcome(probes[name], lab)
            with make_lab() as lab:
                lab.healthy()
        except Exception as e:
            spoiled = f"{type(e).__name__}: {e}"
        yield {"outcome": asdict(answer), "spoiled": spoiled}
        if spoiled:
            return


def main() -> None:
    """Serve the names on stdin; answer on stdout."""
    from .lab import Lab
    from .table import PROBES

    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for answer in serve(map(json.loads, sys.stdin), PROBES, Lab):
            print(json.dumps(answer), file=answers, flush=True)
