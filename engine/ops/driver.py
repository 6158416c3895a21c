"""Calls to CUDA libraries, which return a status instead of raising."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import DeviceError


def _device_error(function: str, status: Any) -> Exception:
    return DeviceError(f"{function}: {getattr(status, 'name', f'status {status}')}")


def call(function: Callable[..., Any], *args: Any, failed: Callable[[str, Any], Exception] = _device_error) -> Any:
    """Call a function of cuda-bindings or ctypes, check its status, and return its other results.

    One result is returned as it is, several as a list, none as None. failed(name, status): makes the error to raise;
    default: DeviceError with function and status."""
    found = function(*args)
    status, *values = found if isinstance(found, tuple) else (found,)
    if int(status):
        raise failed(function.__name__, status)
    return values[0] if len(values) == 1 else values or None
