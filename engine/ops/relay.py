"""Where the kernels of a decode step hand values to one another, each as soon as it is there: see kernels/relay.cuh.

Made by CudaOps for its decode buffers; holds device memory, launches nothing. A value has a place of its own for each
layer, because a place is written once in a step: embed clears all of them first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import ModelConfig
from .base import Array, Buffers

COMES, ENDED, STARTS = 0, 1, 2  # when a product may read x: of kernels/linear_decode.cu
F32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Handed:
    """Rows [R, N] T in the relay, row by row or, as products want them, in the order [N / 16, R, 16]."""

    data: Array
    rows: int
    width: int
    blocked: bool

    def __len__(self) -> int:
        return self.rows

    @property
    def layout(self) -> tuple[int, int]:
        """Elements from a row to the next, and from 16 of a row to its next 16: Layout of kernels/relay.cuh."""
        return (16, 16 * self.rows) if self.blocked else (self.width, 16)


@dataclass(frozen=True)
class Stream:
    """The residual stream between two operations: what epilogue.cuh's Add leaves, or embed."""

    x: Array  # [R, D] float32
    h: Handed  # [R, D] T, times the weight of the norm that reads it next
    squares: Array  # [R, D / 16] float32, of 16 neighbours of x each
    places: Array | None = None  # [n, 4] uint32, what embed clears when it makes this one: the rest of the relay

    @property
    def first(self) -> bool:
        """Made by embed: who reads it waits for that to end, because until then the relay holds the last step."""
        return self.places is not None

    def __len__(self) -> int:
        return len(self.x)


class _Arena:
    """Hands out arrays of one piece of memory, one behind the other; without memory it only counts."""

    def __init__(self, memory: Any = None) -> None:
        self.memory, self.used = memory, 0  # in 16 bytes

    def new(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        count = math.prod(shape) * dtype.itemsize
        first, self.used = self.used, self.used - (-count // 128) * 8  # no two share a line of 128 bytes
        if self.memory is None:
            return None
        return self.memory[first : self.used].reshape(-1)[: count // 4].view(dtype).reshape(shape)

    def handed(self, rows: int, width: int, dtype: np.dtype, blocked: bool = True) -> Handed:
        shape = (width // 16, rows, 16) if blocked else (rows, width)
        return Handed(self.new(shape, dtype), rows, width, blocked)

    def stream(self, c: ModelConfig, rows: int, dtype: np.dtype) -> Stream:
        x, squares = self.new((rows, c.hidden), F32), self.new((rows, c.hidden // 16), F32)
        return Stream(x, self.handed(rows, c.hidden, dtype), squares)


def relay(device: Any, c: ModelConfig, b: Buffers, dtype: np.dtype) -> list[Buffers]:
    """b for every layer of a decode step and for the head, with places in a new relay for what is handed on."""
    counting = _Arena()
    _lay_out(counting, c, b, dtype)
    return _lay_out(_Arena(device.empty((counting.used, 4), np.dtype(np.uint32))), c, b, dtype)


def _lay_out(arena: _Arena, c: ModelConfig, b: Buffers, dtype: np.dtype) -> list[Buffers]:
    rows, layers = len(b.x), []
    x = arena.stream(c, rows, dtype)
    if arena.memory is not None:
        x = replace(x, places=arena.memory[arena.used :])
    for _ in range(c.layers):
        qkv = b.qkv if c.qk_norm else arena.handed(rows, c.qkv, dtype, blocked=False)  # a head norm works in place
        attn, mid = arena.handed(rows, c.heads * c.head_dim, dtype), arena.stream(c, rows, dtype)
        layers.append(replace(b, x=x, qkv=qkv, attn=attn, mid=mid, ffn=arena.handed(rows, c.ffn, dtype)))
        x = arena.stream(c, rows, dtype)
    layers.append(replace(b, x=x))
    return layers
