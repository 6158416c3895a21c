"""Which kernels were executed; conftest.py checks this at the end of a run of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest
from emulator.device import launched
from emulator.rewrite import kernel_parameters

from ostinato.ops.device import KERNELS

NO_COMPILER = "no C++ compiler: install g++ (Debian: apt install g++) or clang++ to run kernels on the CPU"


def whole_suite(config: pytest.Config) -> bool:
    """Whether this is a run of all tests, with none deselected on the command line."""
    options = ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob", "collectonly")
    chosen = any(config.getoption(option, None) for option in options)
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen


def declared(directory: Path = KERNELS) -> list[tuple[str, str]]:
    """(file, name) of every kernel in <directory>/*.cu."""
    files = sorted(directory.glob("*.cu"))
    return [(file.name, name) for file in files for name in kernel_parameters(file.read_text(encoding="utf-8"))]


def never_launched(directory: Path = KERNELS) -> list[str]:
    """The kernels that no test of this process executed on the CPU."""
    return [f"{file} {name}" for file, name in declared(directory) if not launched[file, name]]
