"""Helpers for tests of DeviceOps: a KV cache with scattered pages, and attention in float64."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from ostinato.ops.attend_shapes import DecodeTile
from ostinato.ops.base import Cache, PassKind, Step
from ostinato.ops.device import Device
from ostinato.ops.device_ops import DeviceOps
from ostinato.ops.scratch import Scratch
from ostinato.sizes import PAGE

I32, F32 = np.dtype(np.int32), np.dtype(np.float32)
TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": F32}
EPS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-19}  # of one rounding to T, or of sums of float32


class RowOps(DeviceOps):
    """DeviceOps without GEMMs."""

    name = "rows"


def close(found: np.ndarray, expected: np.ndarray, eps: float) -> None:
    """Assert that values are finite and at most eps apart, in units of the largest expected value."""
    found = found.astype(float)
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= eps * max(1.0, np.abs(expected).max())


def step(device: Device, seqs, positions, visible, table, kind: PassKind = PassKind.DECODE) -> Step:
    """A Step with these rows."""
    up = lambda v: device.upload(np.array(v, I32))  # noqa: E731
    return Step(up(seqs), up(seqs), up(positions), up(visible), up(table), up([0]), kind)


@dataclass
class Memory:
    """A KV cache with some sequences on scattered pages; all unwritten tokens are NaN."""

    keys: list[np.ndarray]  # per sequence: [tokens, G, d]
    values: list[np.ndarray]
    table: np.ndarray  # [S + 1, pages]
    cache: Cache

    @staticmethod
    def of(
        device: Device, rng: np.random.Generator, lengths: list[int], g: int, d: int, dtype: np.dtype, mean: float = 0
    ) -> Memory:
        """Of normal numbers; the keys' have this mean."""
        need = [-(-n // PAGE) for n in lengths]
        table = np.zeros((len(lengths) + 1, max(need)), I32)
        ids = rng.permutation(np.arange(1, sum(need) + 1))
        k, v = (np.full((sum(need) + 1, g, PAGE, d), np.nan, dtype) for _ in range(2))
        keys = [(rng.standard_normal((n, g, d)) + mean).astype(dtype) for n in lengths]
        values = [rng.standard_normal((n, g, d)).astype(dtype) for n in lengths]
        for s, n in enumerate(lengths):
            table[s, : need[s]], ids = ids[: need[s]], ids[need[s] :]
            for t in range(n):
                k[table[s, t // PAGE], :, t % PAGE] = keys[s][t]
                v[table[s, t // PAGE], :, t % PAGE] = values[s][t]
        k[0, :, 0] = v[0, :, 0] = 1  # written by padding rows
        return Memory(keys, values, table, Cache(device.upload(k), device.upload(v)))

    def attend(self, queries: np.ndarray, seq: int, visible: int, window: int) -> np.ndarray:
        """queries [H, d] -> [H, d] in float64."""
        low = max(0, visible - window) if window else 0
        group = len(queries) // self.keys[seq].shape[1]
        k = np.repeat(self.keys[seq][low:visible].astype(float), group, axis=1)
        v = np.repeat(self.values[seq][low:visible].astype(float), group, axis=1)
        score = np.einsum("hd,thd->ht", queries.astype(float), k) / np.sqrt(queries.shape[1])
        p = np.exp(score - score.max(1, keepdims=True))
        return np.einsum("ht,thd->hd", p / p.sum(1, keepdims=True), v)


def scratch(device: Device, rows: int, heads: int, g: int, d: int, dtype: np.dtype, pages: int) -> Scratch:
    """Scratch as DeviceOps.buffers creates it, poisoned where contents are unspecified."""
    tile = DecodeTile.of(dtype.itemsize, d, heads // g)
    units, splits = rows * g * tile.chunks, tile.splits(pages * PAGE)
    poison = lambda n: device.upload(np.full(n, np.nan, F32))  # noqa: E731
    return Scratch(
        partial=poison(units * splits * min(8 * tile.tiles, heads // g) * d),
        stats=poison(units * splits * 16 * tile.tiles),
        splits=splits,
        arrived=device.upload(np.zeros(units, I32)),
        squared=poison(0),
        best=device.upload(np.zeros(rows, np.uint64)),
        scanned=device.upload(np.zeros(rows, I32)),
    )
