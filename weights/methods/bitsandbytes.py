"""bitsandbytes: 4-bit numbers of a table of 16 (NF4 or FP4) with a scale for each block, and int8 rows.

    weight [N K / 2, 1]   two codes a byte, high half first, in the order of the numbers
    weight.absmax         the scale of each block: float32, or with double quantisation bytes, of which
                          scale = nested_quant_map[byte] nested_absmax[block / 256] + nested_offset
    weight.quant_map [16] float32, the table
    weight.quant_state.bitsandbytes__nf4 (or __fp4)   JSON: blocksize, shape, nested_blocksize, nested_offset, ...

w = quant_map[code] scale. Of 8 bits: weight [N, K] I8 and SCB [N] F32, w = code SCB / 127. A table is no row of
integers: 4-bit matrices have no planes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...errors import CheckpointError
from ...keys import Keys
from ..files import parse_json
from ..quantised import Quantised
from .bytewise import Bytewise
from .method import Method
from .module import FLOATS, Module
from .packed import Ordered

_MOST = 2**31 - 1  # of a size
STATES = {f"weight.quant_state.bitsandbytes__{kind}": kind for kind in ("nf4", "fp4")}


@dataclass(frozen=True)
class Nested:
    """Scales that are quantised themselves: bytes of a table, in blocks with a scale of their own."""

    table: np.ndarray  # [256] float32
    scales: np.ndarray  # [ceil(blocks / size)] float32
    size: int
    offset: np.float32


@dataclass(frozen=True)
class Table(Ordered):
    """A 4-bit matrix of bitsandbytes."""

    packed: np.ndarray = field(kw_only=True)  # [N, K / 2] uint8
    table: np.ndarray = field(kw_only=True)  # [16] float32
    absmax: np.ndarray = field(kw_only=True)  # [blocks] float32, or uint8 with `nested`
    block: int = field(kw_only=True)  # numbers, counted through the rows
    nested: Nested | None = None

    def _planes(self, first: int, last: int) -> None:
        return None

    def _numbers(self, first: int, last: int, out: np.ndarray) -> None:
        at, k = np.arange(self.rows)[self._at(first, last)], self.shape[1]
        pairs = np.take(self._pairs, self.packed[at], mode="clip").view(np.float32)
        share = self.block if k % self.block == 0 else 1  # neighbours in a row that always have one scale
        scales = self._scales((at[:, None] * k + np.arange(0, k, share)) // self.block)
        if not np.isfinite(scales).all():
            row, place = np.argwhere(~np.isfinite(scales))[0]
            raise CheckpointError(f"{self.where}: absmax of row {first + row}, column {place * share}: expected a "
                                  f"finite number, found {scales[row, place]}")  # fmt: skip
        np.multiply(pairs.reshape(*scales.shape, share), scales[..., None], out=out.reshape(*scales.shape, share))

    @cached_property
    def _pairs(self) -> np.ndarray:
        """[256] the two numbers of a byte, 8 bytes: one look-up for both."""
        codes = np.arange(256)
        return np.stack([self.table[codes >> 4], self.table[codes & 15]], -1).view(np.uint64)[:, 0]

    def _scales(self, blocks: np.ndarray) -> np.ndarray:
        """Of the blocks of these numbers, float32."""
        scales = np.take(self.absmax, blocks)
        if self.nested is None:
            return scales
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number is refused by the caller
            return self.nested.table[scales] * self.nested.scales[blocks // self.nested.size] + self.nested.offset


class BitsAndBytes(Method):
    """quant_method "bitsandbytes"."""

    about = "nf4 and fp4, with double quantisation or without; int8"
    refused = "matrices of an odd K"
    entries = ("weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
               *STATES, "SCB", "weight_format")  # fmt: skip
    types = ("U8", "I8")
    harmless = re.compile(r"_?load_in_[48]bit|bnb_4bit_\w+|llm_int8_\w+", re.ASCII)

    def __init__(self, keys: Keys) -> None:
        pass

    def matrix(self, m: Module) -> Quantised:
        return _int8(m) if "SCB" in m else _table(m)


def _int8(m: Module) -> Bytewise:
    codes, scales = m.array("weight", "I8"), m.array("SCB", "F32", dims=1)
    n, k = codes.shape
    m.expect("SCB", (n,))
    if "weight_format" in m and (found := m.array("weight_format", "U8", dims=None).reshape(-1).tolist()) != [0]:
        m.wrong("weight_format", "0, rows one after the other", found)
    share = (scales * np.float32(1 / 127)).reshape(n, 1)
    return Bytewise(
        m.where, "bitsandbytes int8", (n, k), m.nbytes, n, code="s8", codes=codes, scales=share, block=(1, k)
    )


def _table(m: Module) -> Table:
    states = [suffix for suffix in STATES if suffix in m]
    if len(states) != 1:
        m.array(next(iter(STATES)), "U8", dims=1)  # says that it is missing
        m.wrong(states[1], f"no such tensor beside {m.name}.{states[0]}", "one")
    where = f"{m.entries[states[0]].file}: tensor {m.name}.{states[0]}"
    state = Keys(parse_json(m.array(states[0], "U8", dims=1).tobytes(), where), where)
    (n, k), block = _shape(state), state.integer("blocksize", 1, _MOST)
    m.array("weight", "U8", *FLOATS, dims=None)  # bnb_4bit_quant_storage may be a type of floats
    packed = m.entries["weight"].raw
    if packed.nbytes * 2 != n * k or k % 2:
        m.wrong("weight", f"half a byte for each number of shape {[n, k]} of {states[0]}, and an even K",
                f"{packed.nbytes} bytes")  # fmt: skip
    table = _finite(m, "weight.quant_map", 16)
    blocks = -(-n * k // block)
    nested = _nested(m, state, blocks) if "weight.nested_absmax" in m else None
    absmax = m.array("weight.absmax", "U8" if nested else "F32", dims=1)
    m.expect("weight.absmax", (blocks,), f"for blocks of {block} numbers")
    return Table(
        m.where, f"bitsandbytes {STATES[states[0]]} b{block}", (n, k), m.nbytes, n,
        packed=packed.reshape(n, k // 2), table=table, absmax=absmax, block=block, nested=nested,
    )  # fmt: skip


def _shape(state: Keys) -> tuple[int, int]:
    """N and K."""
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 0 < n <= _MOST for n in shape):
        state.wrong("shape", "a list of two positive numbers", shape)
    return shape[0], shape[1]


def _nested(m: Module, state: Keys, blocks: int) -> Nested:
    """What turns bytes into so many scales."""
    size = state.integer("nested_blocksize", 1, _MOST)
    scales = _finite(m, "weight.nested_absmax", -(-blocks // size))
    offset = np.float32(state.real("nested_offset", -3e38, 3e38))
    return Nested(_finite(m, "weight.nested_quant_map", 256), scales, size, offset)


def _finite(m: Module, suffix: str, length: int) -> np.ndarray:
    """An entry of so many float32 numbers, all finite."""
    values = m.array(suffix, "F32", dims=1)
    m.expect(suffix, (length,))
    if not np.isfinite(values).all():
        m.wrong(suffix, "finite numbers", values[~np.isfinite(values)][0])
    return values
