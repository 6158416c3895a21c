"""Packing of a kernel's arguments for the driver."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ostinato.ops.arguments import Arguments, word

WORDS = [
    pytest.param(None, 0, id="none"),
    pytest.param(np.int32(-2), 2**32 - 2, id="int32"),
    pytest.param(np.uint64(2**63 + 1), 2**63 + 1, id="uint64"),
    pytest.param(np.float32(1.5), 0x3FC00000, id="float32"),
    pytest.param(SimpleNamespace(data=SimpleNamespace(ptr=0x7F0012345678)), 0x7F0012345678, id="device-array"),
]


@pytest.mark.parametrize(("value", "low"), WORDS)
def test_word(value: Any, low: int) -> None:
    """An argument has its parameter's size. Runs twice, because the first call caches the type."""
    bits = 64 if low >= 2**32 else 32
    assert word(value) % 2**bits == low and word(value) == word(value)


@pytest.mark.parametrize("value", [1, 1.0, True, "a", np.float64(1), np.zeros(3)], ids=lambda v: type(v).__name__)
def test_what_the_driver_could_misread_is_refused(value: Any) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match=f"expected a device array, .* found {type(value).__name__}"):
            word(value)


def test_the_buffer_is_reused() -> None:
    room = Arguments(3)
    for given in ([1, 2, 3], [4, -5, 6]):
        room.fill([np.int32(v) for v in given])
        pointers = (ctypes.c_void_p * 3).from_address(room.address)
        assert [ctypes.c_int32.from_address(p or 0).value for p in pointers] == given
