"""Runs one launch under one or several schedules, and checks memory after each."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from . import build
from .kernel import Argument, EmulatedKernel, KernelFault
from .launch import Launch, Region
from .memory import Allocation

POISONS = (0xFF, 0x3C, 0x00)  # bytes of unwritten shared memory, by schedule


@dataclass(frozen=True)
class Variant:
    """A variation of a launch that must not change its result."""

    seed: int  # order of threads and blocks: 0 as numbered, 1 reversed, others random
    poison: int
    hide: bool  # before grid_wait the kernel sees none of the predecessors' writes
    reason: str  # the fault, if the result differs


def variants(schedules: int, dependent: bool) -> Iterator[Variant]:
    """The variants to run: the first gives the result, the others must agree with it."""
    if dependent and schedules > 1:
        yield Variant(0, POISONS[0], False, "")
    yield Variant(0, POISONS[0], dependent, "the result depends on what is read before grid_wait")
    for i in range(1, schedules):
        reason = "the result depends on the order of threads or on unwritten shared memory"
        yield Variant(i, POISONS[i % len(POISONS)], False, reason)


class Chain:
    """Memory of the kernels that may still run when the next one starts, that is, before its grid_wait returns.

    The next kernel starts when every block of its predecessor has called grid_launch or ended. Kernels before the
    predecessor have then ended, unless the predecessor called grid_launch before its own grid_wait. The predecessor has
    ended, with visible writes, if it never calls grid_launch and ends with __threadfence.
    """

    def __init__(self) -> None:
        self._masks: dict[Allocation, np.ndarray | None] = {}  # per byte: written
        self._last: tuple[list[Argument], dict[Allocation, np.ndarray]] = [], {}

    def clear(self) -> None:
        """Forget all kernels: everything launched so far has ended."""
        self._masks.clear()
        self._last = [], {}

    def add(self, launch: Launch, arrays: list[Argument], before: dict[Allocation, np.ndarray]) -> None:
        """Add a kernel that has run with these arrays. before: their contents before it."""
        self._settle()
        if launch.triggered < 2:
            self._masks.clear()
        if launch.triggered or not launch.fenced:
            self._last = arrays, before

    def regions(self) -> ctypes.Array[Region]:
        """The chain as C structures for the runtime; valid until the chain changes."""
        self._settle()
        return (Region * len(self._masks))(
            *(
                Region(a.pages.ctypes.data, a.pages.size, None if mask is None else mask.ctypes.data)
                for a, mask in self._masks.items()
            )
        )

    def _settle(self) -> None:
        """Compute what the last kernel wrote. Deferred until it is needed, which is rare."""
        (arrays, before), self._last = self._last, ([], {})
        for argument in arrays:
            allocation = argument.allocation
            self._masks.setdefault(allocation, None)
            if allocation in before:
                unit = f"u{min(allocation.dtype.itemsize, 8)}"
                changed = allocation.pages.view(unit) != before[allocation].view(unit)
                mask, old = np.repeat(changed, changed.itemsize * int(unit[1:])), self._masks[allocation]
                self._masks[allocation] = mask if old is None else mask | old


def run(kernel: EmulatedKernel, launch: Launch, arrays: list[Argument], schedules: int) -> dict[Allocation, np.ndarray]:
    """Run a launch under every variant; return the previous contents of its writable arrays. KernelFault on a fault."""
    before = {a.allocation: a.allocation.pages.copy() for a in arrays if a.written}
    after: dict[Allocation, np.ndarray] = {}
    for i, variant in enumerate(variants(schedules, bool(launch.dependent))):
        for allocation, pages in before.items() if i else ():
            allocation.pages[:] = pages
        launch.seed, launch.poison, launch.hide = variant.seed, variant.poison, variant.hide
        if message := launch.run(kernel.entry):
            raise KernelFault(f"{kernel}: {_explain(kernel, launch, message, arrays)}")
        for argument in arrays:
            if where := argument.allocation.overwritten():
                raise KernelFault(f"{kernel}: writes {where} {_label(kernel, argument.allocation, arrays)}")
        if not i and schedules > 1:
            after = {allocation: allocation.pages.copy() for allocation in before}
        for allocation, pages in after.items():
            different = np.flatnonzero(allocation.pages != pages)
            if different.size:
                at = int(different[0] + allocation.pages.ctypes.data - allocation.start) // allocation.dtype.itemsize
                label = _label(kernel, allocation, arrays)
                raise KernelFault(f"{kernel}: {variant.reason}: {label} differs at element {at}")
    return before


def _explain(kernel: EmulatedKernel, launch: Launch, message: str, arrays: list[Argument]) -> str:
    """The runtime's message; for a memory fault also the source line, and what is at the address."""
    if not launch.faulted:
        return message
    base = ctypes.c_size_t.from_address(kernel.loaded._handle).value  # the link map begins with the load address
    line = build.source_line(kernel.path, launch.instruction - base)
    verb = "writes" if launch.fault_is_write else "reads"
    return f"{message.split(': ')[0]}: {verb} {_place(kernel, launch, arrays)}" + (f" ({line})" if line else "")


def _place(kernel: EmulatedKernel, launch: Launch, arrays: list[Argument]) -> str:
    """Describe the memory at the address of a fault."""
    behind_shared = launch.fault - launch.shared - launch.shared_bytes
    if launch.fault < 1 << 16:
        return f"through a null pointer (address {launch.fault:#x})"
    if 0 <= behind_shared < 1 << 16:
        return f"{behind_shared} bytes behind the shared memory"
    memory = [a.allocation for a in arrays]
    near = min(memory, key=lambda a: max(a.start - launch.fault, launch.fault - a.end), default=None)
    if near is None or not near.start - (1 << 20) <= launch.fault < near.end + (1 << 20):
        return f"memory at {launch.fault:#x} that no argument is near to"
    label = _label(kernel, near, arrays)
    if near.start <= launch.fault < near.end:
        return f"{label} before grid_wait, while an earlier kernel may use it"
    if launch.fault >= near.end:
        return f"{launch.fault - near.end} bytes behind the end of {label}"
    return f"{near.start - launch.fault} bytes in front of {label}"


def _label(kernel: EmulatedKernel, allocation: Allocation, arrays: list[Argument]) -> str:
    """The name of an array in messages: its argument."""
    return f"{kernel.argument(next(a.index for a in arrays if a.allocation is allocation))}, {allocation}"
