"""Fixtures that every test may use."""

from __future__ import annotations

import pytest
from emulator import EmulatedDevice, build

from ostinato.errors import DeviceError
from ostinato.ops.device import CupyDevice, Device


@pytest.fixture(scope="session")
def compiler() -> str:
    """The C++ compiler; skips the test if there is none."""
    if not (found := build.compiler()):
        pytest.skip("no C++ compiler: install g++ (Debian: apt install g++) or clang++ to run kernels on the CPU")
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
