"""Fixtures that every test may use, and what a run of the whole suite must show: every kernel was executed."""

from __future__ import annotations

import signal
import threading

import pytest
from emulator import EmulatedDevice, build
from executed import NO_COMPILER, declared, never_launched, whole_suite
from instances import TOGETHER, on_the_cpu

from ostinato.errors import DeviceError
from ostinato.ops.device import Device
from ostinato.ops.gpu import CupyDevice

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
        return EmulatedDevice(together=TOGETHER)
    try:
        return CupyDevice()
    except DeviceError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def shuffled(compiler: str) -> EmulatedDevice:
    """The emulated GPU, every launch run under three schedules that must agree bit for bit."""
    return EmulatedDevice(schedules=3, together=TOGETHER)


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the programs that tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile kernels on the second core while the tests run on the first."""
    if whole_suite(session.config) and build.compiler():
        threading.Thread(target=build.compile_all, args=(on_the_cpu(), _run_over.is_set), daemon=True).start()


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
    total, missing = len(declared()), never_launched()
    terminalreporter.write_line(f"{total - len(missing)} of {total} kernels executed on the CPU")
    for kernel in missing:
        terminalreporter.write_line(f"FAILED: {kernel} was never executed", red=True)
