"""Fixtures that every test may use, and what a run of the whole suite must show: every kernel was executed."""

from __future__ import annotations

import threading

import pytest
from emulator import EmulatedDevice, build
from emulator.device import launched
from emulator.rewrite import kernel_parameters
from instances import INSTANCES

from ostinato.errors import DeviceError
from ostinato.ops.device import KERNELS, CupyDevice, Device

NO_COMPILER = "no C++ compiler: install g++ (Debian: apt install g++) or clang++ to run kernels on the CPU"
_run_over = threading.Event()


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C++ compiler; skips the test if there is none."""
    if not (found := build.compiler()):
        pytest.skip(NO_COMPILER)
    return found


@pytest.fixture(scope="session", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """The emulated GPU, and a real one where there is one."""
    if request.param == "emulated":
        request.getfixturevalue("compiler")
        return EmulatedDevice()
    try:
        return CupyDevice()
    except DeviceError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def shuffled(compiler: str) -> EmulatedDevice:
    """The emulated GPU, every launch run under three schedules that must agree bit for bit."""
    return EmulatedDevice(schedules=3)


def whole_suite(config: pytest.Config) -> bool:
    """Is this a run of all tests, of which none was left out on the command line?"""
    options = ("keyword", "markexpr", "lf", "deselect", "ignore", "ignore_glob", "collectonly")
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(map(config.getoption, options))


def never_launched() -> list[str]:
    """Kernels of kernels/*.cu that no test of this process has executed on the CPU."""
    files = sorted(KERNELS.glob("*.cu"))
    declared = [(file.name, name) for file in files for name in kernel_parameters(file.read_text(encoding="utf-8"))]
    return [f"{file} {name}" for file, name in declared if not launched[file, name]]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile kernels on the second core while the tests run on the first."""
    if whole_suite(session.config) and build.compiler():
        instances = [(file, name) for file, names in INSTANCES.items() for name in names]
        threading.Thread(target=build.compile_all, args=(instances, _run_over.is_set), daemon=True).start()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A kernel that was never executed fails the whole run."""
    _run_over.set()
    if exitstatus == pytest.ExitCode.OK and whole_suite(session.config) and build.compiler() and never_launched():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many kernels were executed, and which were not."""
    if not whole_suite(config):
        return
    if not build.compiler():
        terminalreporter.write_line(f"kernels were not executed: {NO_COMPILER}")
        return
    terminalreporter.write_line(f"{len(launched)} kernels executed on the CPU in {launched.total()} launches")
    for kernel in never_launched():
        terminalreporter.write_line(f"FAILED: {kernel} was never executed", red=True)
