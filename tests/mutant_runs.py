"""Runs tests on a copy of the tree with a changed kernel, and reports which test caught the change."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from emulator import build

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds for one run of tests


class Survived(Exception):
    """The tests passed on a change that they must catch, or could not run."""


class DoesNotCompile(Exception):
    """The compiler rejects the change, so no test is needed."""


def lay_out(target: Path) -> Path:
    """Copy what the tests need, with the package laid out as installed; return the copy of kernels/."""
    package = target / "site" / "ostinato"
    skip = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    shutil.copytree(ROOT / "engine", package, ignore=skip)
    for folder in ("weights", "kernels"):
        shutil.copytree(ROOT / folder, package / folder, ignore=skip)
    shutil.copytree(ROOT / "tests", target / "tests", ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", target)
    return package / "kernels"


def lend_cache(target: Path) -> None:
    """Copy the compile cache for a copy of the tree: binaries of a changed kernel must not enter the real cache."""
    own = target / "cache" / "ostinato" / "emulator"
    own.mkdir(parents=True)
    for path in build.cache_directory().glob("*.so"):
        (own / path.name).symlink_to(path)


def keep_compiled(target: Path, changed: Collection[str]) -> None:
    """Keep the binaries that a copy compiled from unchanged files, for the next copy."""
    stems = {Path(file).stem for file in changed}
    for path in (target / "cache" / "ostinato" / "emulator").glob("*.so"):
        if not path.is_symlink() and path.name.rpartition("-")[0] not in stems:
            part = build.cache_directory() / f"{path.name}.{os.getpid()}.{target.name}.part"
            shutil.copy(path, part)
            os.replace(part, build.cache_directory() / path.name)


def run_tests(target: Path, tests: Sequence[str], *more: str) -> str:
    """Run tests of a copy; return the first failure, or "". DoesNotCompile if a kernel does not compile."""
    paths = [target / "site", target / "tests", *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300",
        "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    if (target / "cache").exists():
        environment["XDG_CACHE_HOME"] = str(target / "cache")
    options = ["-x", "--tb=line", "-o", "addopts=--strict-markers", "-p", "no:cacheprovider", "-p", "survey", *more]
    command = [sys.executable, "-m", "pytest", *options, "-m", "not gpu", *tests]
    done = subprocess.run(command, cwd=target, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return "the time it may take"
    if done.returncode < 0:
        return f"{signal.Signals(-done.returncode).name} in a test"
    if done.returncode not in (0, 1):
        raise Survived(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    if "no tests ran" in done.stdout or not re.search(r"\d+ (passed|failed)", done.stdout):
        raise Survived(f"no test ran:\n{done.stdout[-2000:]}")
    found = re.search(r"^(?:FAILED|ERROR) (.*)$", done.stdout, re.M)
    if found and "CompileError" in found.group(1):
        raise DoesNotCompile(found.group(1))
    return found.group(1) if found and done.returncode else ""
