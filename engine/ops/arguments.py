"""Arguments of a kernel as the driver takes them: one 8-byte word each."""

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
    """The bits of one kernel argument: a device array's address, a NumPy scalar's value, 0 for None."""
    return (_WORDS.get(type(value)) or _learn(value))(value)


def _learn(value: Any) -> Callable[[Any], int]:
    """What `word` does for values of this type, from now on: the device's arrays."""
    try:
        _address(value)
    except AttributeError:
        found = type(value).__name__
        raise TypeError(f"kernel argument: expected a device array, a NumPy scalar or None, found {found}") from None
    return _WORDS.setdefault(type(value), _address)


class Arguments:
    """Room for `count` arguments, filled anew for every launch: the driver has copied them when a launch returns.

    A kernel reads the first bytes of a word, as many as its parameter has."""

    def __init__(self, count: int) -> None:
        self._words = (ctypes.c_uint64 * count)()
        first = ctypes.addressof(self._words)
        self._pointers = (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))
        self.address = ctypes.addressof(self._pointers)  # of an array of pointers to the words

    def fill(self, args: Sequence[Any]) -> None:
        """Take these in place of those before."""
        self._words[:] = [word(a) for a in args]
