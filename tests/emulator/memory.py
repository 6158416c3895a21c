"""Arrays that end at an unreadable page: the emulated device's memory.

    | unreadable pages | guard  [ array ] | unreadable pages |

A kernel that reads or writes behind an array (its size rounded up to 16 bytes) faults immediately. The guard in front
of the array and up to 15 bytes behind it are filled with POISON and checked after every launch.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from bisect import bisect_right, insort

import numpy as np

PAGE = mmap.PAGESIZE
GUARD = 16 * PAGE  # bytes of unreadable pages on either side of an array
POISON = 0xFF  # every byte: NaN in every floating-point format, -1 in every signed one

_libc = ctypes.CDLL(None, use_errno=True)


def reserve(size: int) -> np.ndarray:
    """`size` bytes (a multiple of PAGE) with GUARD unreadable bytes on either side."""
    whole = np.frombuffer(mmap.mmap(-1, size + 2 * GUARD), np.uint8)
    for start in (whole.ctypes.data, whole.ctypes.data + size + GUARD):
        if _libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(GUARD), 0):
            raise MemoryError(f"mprotect failed: errno {ctypes.get_errno()}")
    return whole[GUARD:-GUARD]


class Allocation:
    """Memory of one array. NumPy keeps it alive for as long as a view of the array lives."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        room = -(-self.bytes // 16) * 16
        self.pages = reserve(max(1, -(-room // PAGE)) * PAGE)
        self.pages[:] = POISON
        first = self.pages.size - room
        self.start = self.pages.ctypes.data + first
        self.end = self.start + self.bytes
        self._front, self._back = self.pages[:first], self.pages[first + self.bytes :]
        self.__array_interface__ = {"version": 3, "shape": (self.bytes,), "typestr": "|u1", "data": (self.start, False)}

    def array(self) -> np.ndarray:
        """The array itself."""
        return np.asarray(self).view(self.dtype).reshape(self.shape)

    def overwritten(self) -> str:
        """Where a guard was overwritten ("3 bytes behind"); "" if it was not."""
        if self._back.size and self._back.min() != POISON:
            return f"{np.flatnonzero(self._back != POISON)[0] + 1} bytes behind"
        if self._front.size and self._front.min() != POISON:
            return f"{self._front.size - np.flatnonzero(self._front != POISON)[-1]} bytes in front of"
        return ""

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Memory:
    """All live arrays of a device, by address."""

    def __init__(self) -> None:
        self._starts: list[int] = []  # start addresses of the readable pages, sorted
        self._allocations: dict[int, weakref.ref[Allocation]] = {}

    def new(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """A new array, every byte POISON."""
        allocation = Allocation(tuple(shape), np.dtype(dtype))
        start = allocation.pages.ctypes.data
        insort(self._starts, start)
        self._allocations[start] = weakref.ref(allocation)
        weakref.finalize(allocation, self._forget, start).atexit = False
        return allocation.array()

    def find(self, address: int) -> Allocation | None:
        """The allocation whose pages, or the unreadable pages around them, contain `address`."""
        i = bisect_right(self._starts, address + GUARD) - 1
        for start in self._starts[max(i - 1, 0) : i + 1]:
            allocation = self._allocations[start]()
            if allocation and start - GUARD <= address < start + allocation.pages.size + GUARD:
                return allocation
        return None

    def _forget(self, start: int) -> None:
        self._starts.remove(start)
        del self._allocations[start]
