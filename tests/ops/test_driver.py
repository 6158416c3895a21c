"""Calls of CUDA libraries: results, and errors for a status other than success."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from ostinato.errors import CaptureError, DeviceError
from ostinato.ops.driver import call


class Status(IntEnum):
    SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1


def cuGood(*values: Any) -> tuple:
    return Status.SUCCESS, *values


def cuBad() -> tuple:
    return (Status.CUDA_ERROR_INVALID_VALUE, None)


def cublasBad() -> int:
    return 7


@pytest.mark.parametrize(("given", "expected"), [((), None), ((7,), 7), ((1, 2), [1, 2]), ((0,), 0)], ids=str)
def test_what_a_call_gives_back(given: tuple, expected: Any) -> None:
    assert call(cuGood, *given) == expected


def test_a_library_by_ctypes_gives_back_its_status_alone() -> None:
    assert call(lambda: 0) is None


@pytest.mark.parametrize(
    ("function", "says"), [(cuBad, "cuBad: CUDA_ERROR_INVALID_VALUE"), (cublasBad, "cublasBad: status 7")], ids=str
)
def test_a_call_that_fails_names_itself_and_its_status(function: Any, says: str) -> None:
    with pytest.raises(DeviceError, match=f"^{says}$"):
        call(function)


def test_the_caller_may_choose_the_error() -> None:
    with pytest.raises(CaptureError, match=r"^cuBad 1$"):
        call(cuBad, failed=lambda name, status: CaptureError(f"{name} {int(status)}"))
