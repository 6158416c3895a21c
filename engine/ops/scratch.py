"""What the kernels of a GPU backend leave for one another: declared and made here, all of it at once."""

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
    """Of passes of one kind. Tickets (arrived, scanned) and best are 0 between launches.

    Decode attention cuts a row's tokens into splits and adds up their partial sums; prompts and texts need none of it,
    and have arrays of no elements."""

    partial: Array  # [n] float32, sums of value rows, one set a split
    stats: Array  # [n] float32, largest score and sum of weights, one pair a split and head
    splits: int  # of a row that there is room for
    arrived: Array  # [n] int32, blocks of attention that are done
    squared: Array  # [R, n] float32, sums of squares of rows of b.x, sixteen by sixteen: kernels/norm.cuh; 0 at first
    best: Array  # [B] uint64, order and index of the largest logit so far
    scanned: Array  # [B] int32, blocks of sample that are done

    @staticmethod
    def of(device: Device, itemsize: int, c: ModelConfig, kind: PassKind, rows: int, last: int) -> Scratch:
        """For passes of up to `rows` rows, of which `last` want logits. itemsize: bytes of T."""
        decoded = 0 if kind.tiled else min(rows, DECODE_ROWS)
        of = c.sizes
        group = of.heads // of.kv_heads
        tile = DecodeTile.of(itemsize, of.head_dim, group)
        splits = 0 if kind.tiled else tile.splits(-(-c.max_len // PAGE) * PAGE)
        units = decoded * of.kv_heads * tile.chunks  # blocks of attention, without splits
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
    """Floats of Scratch.squared a row of k elements; as in kernels/norm.cuh."""
    return -(-k // 64) * 4
