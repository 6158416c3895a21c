"""`make mutants RANDOM=n`: makes n random changes in kernels/, and reports which test caught each.

A survivor is equivalent, and not counted, if the machine code of the instances that its tests launch is unchanged, or
if harmless_changes.py lists it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from chosen_tests import Instance, KernelTest, choose, kernel_of, survey
from emulator import build
from harmless_changes import harmless
from mutant_runs import ROOT, DoesNotCompile, Survived, keep_compiled, lay_out, lend_cache, run_tests
from random_mutants import Change, draw, reached

KERNELS = ROOT / "kernels"
ENOUGH = 0.95  # required share of caught changes among those that are not equivalent
COMPARED = 8  # maximum number of instances whose machine code is compared


@dataclass(frozen=True)
class Outcome:
    """The verdict on a change: "caught", "survived", "equivalent", or "refused" by the compiler; and the reason."""

    change: Change
    verdict: str
    why: str

    def __str__(self) -> str:
        c, line = (
            self.change,
            (KERNELS / self.change.file).read_text(encoding="utf-8").splitlines()[self.change.line - 1],
        )
        return f"{self.verdict}: {c.file}:{c.line}: {c.before} -> {c.after}   | {line.strip()}\n    {self.why}"


def judge(change: Change, tests: list[KernelTest], seconds: float) -> Outcome:
    """Make a change in a copy of the tree, and run tests that launch the affected kernels, for about `seconds`."""
    if why := harmless(change):
        return Outcome(change, "equivalent", f"{why} (harmless_changes.py)")
    kernels = reached(KERNELS, change)
    chosen = choose(tests, kernels, seconds)
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory)
        path = lay_out(target) / change.file
        path.write_text(change.apply(path.read_text(encoding="utf-8")), encoding="utf-8")
        lend_cache(target)
        try:
            caught = _run(target, chosen)
        except DoesNotCompile as e:
            return Outcome(change, "refused", str(e))
        except (Survived, subprocess.TimeoutExpired) as e:
            return Outcome(change, "survived", str(e))
        keep_compiled(target, {file for file, _ in kernels})
        if caught:
            return Outcome(change, "caught", caught)
        instances = list(dict.fromkeys(i for t in chosen for i in sorted(t.instances) if kernel_of(i) in kernels))
        if same_code(path.parent, instances[:: -(-len(instances) // COMPARED) or 1]):
            return Outcome(change, "equivalent", f"the same machine code; {len(chosen)} tests pass")
    return Outcome(change, "survived", f"{len(chosen)} tests of {len(instances)} instances pass")


def _run(target: Path, chosen: list[KernelTest]) -> str:
    """Run the chosen tests of a copy in order, with a limit of CPU time against endless loops."""
    order = target / "order"
    order.write_text("".join(f"{t.id}\n" for t in chosen), encoding="utf-8")
    limit = 30 + 4 * int(sum(t.seconds for t in chosen))
    files = sorted({t.file for t in chosen})
    return run_tests(target, files, "--order", str(order), "--cpu", str(limit)) if chosen else ""


def same_code(changed: Path, instances: list[Instance]) -> bool:
    """Whether these instances compile to the same machine code from two versions of kernels/."""
    both = (KERNELS, changed)
    return all(len({build.machine_code(file, (name,), d) for d in both}) == 1 for file, name in instances)


def outcomes(changes: Iterator[Change], count: int, jobs: int, judged: partial[Outcome]) -> Iterator[Outcome]:
    """Yield the outcomes of `count` changes that compile, as they finish."""
    with ThreadPoolExecutor(jobs) as pool:
        while count:
            for done in as_completed([pool.submit(judged, change) for change in islice(changes, count)]):
                if done.result().verdict != "refused":
                    count -= 1
                    yield done.result()


def run_random(count: int, seed: int, jobs: int, seconds: float, report: Path | None) -> int:
    """Print the outcomes of `count` random changes and their totals; return 0 if enough are caught."""
    build.runtime()  # once, not once per job
    tests = survey(_survey_file, jobs)
    found: list[Outcome] = []
    for outcome in outcomes(draw(KERNELS, seed), count, jobs, partial(judge, tests=tests, seconds=seconds)):
        found.append(outcome)
        print(f"{len(found):3}. {outcome}", flush=True)
        if report:
            report.write_text(json.dumps([asdict(o) | {"text": str(o)} for o in found], indent=1), encoding="utf-8")
    verdicts = [o.verdict for o in found]
    caught, equivalent = verdicts.count("caught"), verdicts.count("equivalent")
    print(f"{caught} of {len(found)} changes caught, {equivalent} equivalent, {verdicts.count('survived')} survived")
    return 0 if caught >= ENOUGH * (len(found) - equivalent) else 1


def _survey_file(file: str, path: Path) -> None:
    """Run a test file on the unchanged kernels and record what its tests launch."""
    with tempfile.TemporaryDirectory() as directory:
        lay_out(Path(directory))
        part = Path(directory) / "survey.json"
        if failed := run_tests(Path(directory), [file], "--survey", str(part)):
            raise SystemExit(f"the tests fail without any mistake: {failed}")
        path.write_text(part.read_text(encoding="utf-8"), encoding="utf-8")
