"""Fixtures for all tests, and the check of a whole run that every kernel was executed."""

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
    """The C++ compiler; skips the test without one."""
    if not (found := build.compiler()):
        pytest.skip(NO_COMPILER)
    return found


@pytest.fixture(scope="session", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Device:
    """The emulated GPU, and a real one if there is one."""
    if request.param == "emulated":
        request.getfixturevalue("compiler")
        return EmulatedDevice(together=TOGETHER)
    try:
        return CupyDevice()
    except DeviceError as e:
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def shuffled(compiler: str) -> EmulatedDevice:
    """The emulated GPU. Runs every launch under three schedules and fails unless they agree bit for bit."""
    return EmulatedDevice(schedules=3, together=TOGETHER)


def pytest_configure() -> None:
    """Restore Ctrl-C: background jobs of a shell ignore it, and programs started by tests would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


COMPILING = {"device", "shuffled", "compiler", "jobs"}  # fixtures whose tests compile kernels, unless they are cached
PROCESSES = "ctrl_c fetch forks forks_gpu mutants probe_processes random_mutants sandbox signals streams template"
LONG = "blocks byte_order_mark exact methods schedule soak tied"
MEASURING = "bench bench_graphs bench_schedule compare inspect"
REAL_MODELS = "minilm smollm2 smollm2_text"
SLOW_FILES = {f"test_{name}.py" for name in f"{PROCESSES} {LONG} {MEASURING} {REAL_MODELS} nvrtc".split()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that compile kernels, and those of SLOW_FILES, as slow; others say so themselves.

    A warm cache of compiled kernels changes nothing: what is fast must not depend on it."""
    for item in items:
        if COMPILING & set(getattr(item, "fixturenames", ())) or item.path.name in SLOW_FILES:
            item.add_marker("slow")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compile kernels on a second core while the tests run on the first."""
    if whole_suite(session.config) and build.compiler():
        threading.Thread(target=build.compile_all, args=(on_the_cpu(), _run_over.is_set), daemon=True).start()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail the whole run if a kernel was never executed."""
    _run_over.set()
    if exitstatus == pytest.ExitCode.OK and whole_suite(session.config) and build.compiler() and never_launched():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report how many kernels were executed, and which were not."""
    if not whole_suite(config):
        return
    if not build.compiler():
        terminalreporter.write_line(f"kernels were not executed: {NO_COMPILER}")
        return
    total, missing = len(declared()), never_launched()
    terminalreporter.write_line(f"{total - len(missing)} of {total} kernels executed on the CPU")
    for kernel in missing:
        terminalreporter.write_line(f"FAILED: {kernel} was never executed", red=True)
