"""Arguments of a kernel as the driver takes them: one 8-byte word each. Called by gpu.py."""

from __future__ import annotations

from collections.abc import Callable
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


def word(value: Any) -> int:
    """The bits of one kernel argument: a device array's address, a NumPy scalar's value, 0 for None."""
    convert = _WORDS.get(type(value))
    if convert is not None:
        return convert(value)
    pointer = getattr(getattr(value, "data", None), "ptr", None)
    if pointer is None:
        found = type(value).__name__
        raise TypeError(f"kernel argument: expected a device array, a NumPy scalar or None, found {found}")
    return pointer
