"""The process in which probes run: it reads the name of a probe, runs it, and answers, a line of JSON each.

Started by runner.py. What libraries print goes to stderr. After each probe it looks whether the GPU still works for
this process; `spoiled` in the answer says that it does not, and that the next probe needs a new process.
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
    """Run one probe. Any exception that is not an answer is told as the reason why it was not run."""
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
    """First what machine this is, or {"failed": ...}; then an answer to each name."""
    try:
        yield {"machine": make_lab().device.about()}
    except DeviceError as e:
        yield {"failed": str(e)}
        return
    for name in names:
        answer, spoiled = Outcome(name, "not run", detail="the process has no GPU that works"), ""
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
    """Serve stdin and stdout."""
    from .lab import Lab
    from .table import PROBES

    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for answer in serve(map(json.loads, sys.stdin), PROBES, Lab):
            print(json.dumps(answer), file=answers, flush=True)
