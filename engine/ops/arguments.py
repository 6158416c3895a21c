"""Packs the arguments of a kernel for the driver, one 8-byte word each."""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_WORDS: dict[type, Callable[[Any], int]] = {
    type(None): lambda _: 0,
    np.int32: int,
    np.int64: int,
    np.uint32: int,
    np.uint64: int,
    np.float32: lambda v: int(v.view(np.uint32)),
}
_address = operator.attrgetter("data.ptr")


def word(value: Any) -> int:
    """The 8 bytes of one argument: the address of a device array, the value of a NumPy scalar, 0 for None."""
    return (_WORDS.get(type(value)) or _learn(value))(value)


def _learn(value: Any) -> Callable[[Any], int]:
    """Register this type as a device array. TypeError if it is not one."""
    try:
        _address(value)
    except AttributeError:
        found = type(value).__name__
        raise TypeError(f"kernel argument: expected a device array, a NumPy scalar or None, found {found}") from None
    return _WORDS.setdefault(type(value), _address)


class Arguments:
    """A reusable buffer for `count` arguments; the driver copies them during the launch call.

    A kernel reads the first bytes of a word, as many as its parameter has."""

    def __init__(self, count: int) -> None:
        self._words = (ctypes.c_uint64 * count)()
        first = ctypes.addressof(self._words)
        self._pointers = (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))
        self.address = ctypes.addressof(self._pointers)  # address of the array of pointers to the words

    def fill(self, args: Sequence[Any]) -> None:
        """Replace the contents of the buffer."""
        self._words[:] = [word(a) for a in args]
