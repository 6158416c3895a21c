"""Counts the loads before a kernel's grid_wait in the machine code; ptxas does not report them.

A cubin is an ELF file with one section .text.<kernel> of 16-byte instructions per kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# The low twelve bits of an instruction are its opcode; bit 86 of a load is L1::no_allocate. In nvdisasm 13.0 for sm_90:
# LDG.E.NA, LDGSTS, ACQBULK.
LOAD, COPY, WAIT, NOT_KEPT = 0x981, 0xFAE, 0x82E, 1 << 22


def early_loads(cubin: bytes, kernel: str) -> int:
    """Number of load_stream loads (ptx.cuh) and copies to shared memory before the first wait; 0 without a wait."""
    count = 0
    for low, high in _instructions(cubin, kernel):
        if low & 0xFFF == WAIT:
            return count
        count += low & 0xFFF == COPY or (low & 0xFFF == LOAD and bool(high & NOT_KEPT))
    return 0


def _instructions(cubin: bytes, kernel: str) -> Iterator[tuple[int, int]]:
    """The two 64-bit words of every instruction of a kernel. KeyError if the kernel does not exist."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<I20xQQ", cubin, table + i * size) for i in range(count)]  # name, offset, bytes
    strings = sections[names][1]
    for name, offset, length in sections:
        start = strings + name
        if cubin[start : cubin.index(b"\0", start)].decode() == f".text.{kernel}":
            return iter(struct.iter_unpack("<QQ", cubin[offset : offset + length]))
    raise KeyError(kernel)
