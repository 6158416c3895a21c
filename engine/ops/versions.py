"""Versions of a GPU's software, as reports name them. Called by device.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def versions(runtime: Any) -> dict[str, str]:
    """Of the driver, the CUDA it brings, and the CUDA in use. runtime: cupy.cuda.runtime."""
    cuda = {"CUDA of the driver": runtime.driverGetVersion(), "CUDA runtime": runtime.runtimeGetVersion()}
    return {"driver": _driver_release(), **{name: f"{v // 1000}.{v % 1000 // 10}" for name, v in cuda.items()}}


def _driver_release() -> str:
    """The NVIDIA kernel module's version, "580.159.04"."""
    try:
        found = re.search(r"\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"
