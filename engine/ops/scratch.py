"""Working memory of the GPU kernels: partial results, tickets, sums of squares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import ModelConfig
from ..sizes import DECODE_ROWS, PAGE
from .attend_shapes import DecodeTile
from .base import Array, PassKind
from .device import Device

I32, F32 = np.dtype(np.int32), np.dtype(np.float32)


@dataclass(frozen=True)
class Scratch:
    """Working memory for passes of one kind. Tickets (arrived, scanned) and best are 0 between launches.

    Only decode attention needs partial, stats and arrived (split attention); in other passes they are empty."""

    partial: Array  # [n] float32, unnormalised sums of value rows, per split
    stats: Array  # [n] float32, (largest score, sum of weights) per split and head
    splits: int  # maximum number of splits of a row
    arrived: Array  # [n] int32, tickets: finished blocks of attention
    squared: Array  # [R, n] float32, sums of squares of every 16 elements of b.x (kernels/norm.cuh); initially 0
    best: Array  # [B] uint64, order and index of the largest logit so far
    scanned: Array  # [B] int32, tickets: finished blocks of sample

    @staticmethod
    def of(device: Device, itemsize: int, c: ModelConfig, kind: PassKind, rows: int, last: int) -> Scratch:
        """Allocate for passes of up to `rows` rows, of which `last` need logits. itemsize: bytes of T."""
        decoded = 0 if kind.tiled else min(rows, DECODE_ROWS)
        of = c.sizes
        group = of.heads // of.kv_heads
        tile = DecodeTile.of(itemsize, of.head_dim, group)
        splits = 0 if kind.tiled else tile.splits(-(-c.max_len // PAGE) * PAGE)
        units = decoded * of.kv_heads * tile.chunks  # attention blocks without counting splits
        zeros = lambda shape, dtype: device.upload(np.zeros(shape, dtype))  # noqa: E731
        return Scratch(
            partial=device.empty((units * splits * min(8 * tile.tiles, group) * of.head_dim,), F32),
            stats=device.empty((units * splits * 16 * tile.tiles,), F32),
            splits=splits,
            arrived=zeros(units, I32),
            squared=zeros((decoded, squared_line(c.hidden)), F32),
            best=zeros(last, np.uint64),
            scanned=zeros(last, I32),
        )


def squared_line(k: int) -> int:
    """Floats of Scratch.squared per row of k elements; as in kernels/norm.cuh."""
    return -(-k // 64) * 4
