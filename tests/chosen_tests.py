"""Chooses the tests to run on a changed kernel, and their order: tests that launch it, the most informative per second
first. Based on surveys (survey.py) of the test files, which build/mutants/ keeps until a file changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SURVEYS = ROOT / "build" / "mutants"
COMPILE = 1.2  # seconds to compile an instance
FILES = (
    *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests" / "ops").glob("test_*.py")),
    "tests/engine/test_kernels.py", "tests/engine/test_batch_invariance.py", "tests/test_bench.py",
)  # fmt: skip
OURS = ("mutants", "mutant_runs", "random_mutants", "random_mutant_runs", "harmless_changes", "chosen_tests", "survey")

Instance = tuple[str, str]  # file, name with template arguments


@dataclass(frozen=True)
class KernelTest:
    """One test, as recorded by a survey."""

    id: str
    seconds: float
    instances: frozenset[Instance]

    @property
    def file(self) -> str:
        return self.id.split("::")[0]


def kernel_of(instance: Instance) -> tuple[str, str]:
    """(file, kernel without template arguments)."""
    return instance[0], instance[1].split("<")[0].strip()


def survey(ask: Callable[[str, Path], None], jobs: int) -> list[KernelTest]:
    """All tests that launch kernels. ask: writes the survey of a test file; called for changed files."""
    SURVEYS.mkdir(parents=True, exist_ok=True)
    paths = {file: SURVEYS / f"{file.replace('/', '-')}-{_digest(file)}.json" for file in FILES}
    missing = [(file, path) for file, path in paths.items() if not path.exists()]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda pair: ask(*pair), missing))
    found = {}
    for path in paths.values():
        found |= json.loads(path.read_text(encoding="utf-8"))
    return [KernelTest(name, t["seconds"], frozenset(map(tuple, t["instances"]))) for name, t in found.items()]


def _digest(file: str) -> str:
    """Digest of everything that a survey depends on: the test file, its imports, the operations and the kernels."""
    helpers = [p for p in (ROOT / "tests").rglob("*.py") if not p.name.startswith("test_") and p.stem not in OURS]
    sources = [*(ROOT / "engine" / "ops").glob("*.py"), *(ROOT / "kernels").glob("*.cu*"), *helpers]
    total = hashlib.sha256((ROOT / file).read_bytes())
    for path in sorted(sources):
        total.update(path.read_bytes())
    return total.hexdigest()[:12]


def choose(tests: Iterable[KernelTest], kernels: Collection[tuple[str, str]], seconds: float) -> list[KernelTest]:
    """Tests that launch one of the kernels; compiling and running them takes at most about `seconds`."""
    files = {file for file, _ in kernels}
    left = {t: _coverage(t, kernels) for t in tests}
    left = {t: covers for t, covers in left.items() if covers}
    chosen: list[KernelTest] = []
    seen: set[object] = set()
    compiled: set[Instance] = set()

    def cost(t: KernelTest) -> float:
        return 0.02 + t.seconds + COMPILE * sum(i[0] in files and i not in compiled for i in t.instances)

    while left := {t: covers for t, covers in left.items() if not chosen or cost(t) <= seconds}:
        best = max(left, key=lambda t: (0.01 + len(left[t] - seen)) / cost(t))
        seconds -= cost(best)
        chosen.append(best)
        seen |= left.pop(best)
        compiled |= best.instances
    return chosen


def _coverage(test: KernelTest, kernels: Collection[tuple[str, str]]) -> frozenset[object]:
    """What a test covers: its function, instances, template arguments, and pairs of them."""
    found: set[object] = set()
    for instance in test.instances:
        if kernel_of(instance) in kernels:
            arguments = instance[1].partition("<")[2].rstrip(">").split(", ")
            found |= {
                instance,
                test.id.split("[")[0],
                *((*kernel_of(instance), pair) for pair in combinations_with_replacement(enumerate(arguments), 2)),
            }
    return frozenset(found)
