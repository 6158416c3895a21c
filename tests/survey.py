"""A pytest plugin of `make mutants`: records the kernels and the time of every test; runs tests in a given order.

pytest -p survey --survey FILE          FILE: JSON, node id -> {"seconds": s, "instances": [[file, name], ...]}
pytest -p survey --order FILE           only the tests whose node ids are the lines of FILE, in their order
pytest -p survey --cpu SECONDS          ends the process after this CPU time
"""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mutants")
    group.addoption("--survey", type=Path)
    group.addoption("--order", type=Path)
    group.addoption("--cpu", type=int)


def pytest_configure(config: pytest.Config) -> None:
    if seconds := config.getoption("cpu"):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if path := config.getoption("survey"):
        config.pluginmanager.register(Survey(path))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if path := config.getoption("order"):
        by_id = {item.nodeid: item for item in items}
        items[:] = [by_id[line] for line in path.read_text(encoding="utf-8").splitlines()]


class Survey:
    """Records the kernels that each test launches on the emulated device, and its time without compiling."""

    def __init__(self, path: Path) -> None:
        self.path, self.tests, self.compiling, self.instances = path, {}, 0.0, {}

    def pytest_sessionstart(self) -> None:
        import time

        from emulator import build, device

        launch, compiled = device.EmulatedDevice.launch, build.shared_object

        def recorded(this: Any, kernel: Any, *args: Any, **more: Any) -> None:
            self.instances[kernel.file, kernel.name] = True
            launch(this, kernel, *args, **more)

        def timed(*args: Any) -> Path:
            start = time.perf_counter()
            try:
                return compiled(*args)
            finally:
                self.compiling += time.perf_counter() - start

        device.EmulatedDevice.launch, build.shared_object = recorded, timed  # type: ignore[method-assign]

    def pytest_runtest_setup(self) -> None:
        self.compiling, self.instances = 0.0, {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and self.instances:
            seconds = round(max(0.0, report.duration - self.compiling), 3)
            self.tests[report.nodeid] = {"seconds": seconds, "instances": list(self.instances)}

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.tests, indent=0), encoding="utf-8")
