"""Mean pooling: against float64, the same bits at every place of the rows, and bad inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rows import EPS, F32, I32, RowOps, close

from ostinato.errors import DeviceError
from ostinato.ops.base import Ops
from ostinato.ops.device import Device
from ostinato.ops.numpy import NumpyOps

TEXTS = [(3, 5), (0, 1), (20, 300), (0, 0), (7, 9), (8, 64)]  # (first row, rows); 0 rows: no text


@pytest.fixture(params=[lambda device: NumpyOps(), lambda device: RowOps(device, F32)], ids=["numpy", "kernel"])
def ops(request: pytest.FixtureRequest, device: Device) -> Ops:
    return request.param(device)


def pooled(ops: Ops, x: np.ndarray, texts: list[tuple[int, int]]) -> np.ndarray:
    up = ops.device.upload
    out = up(np.full((len(texts), x.shape[1]), np.nan, F32))
    first, count = (up(np.array(column, I32)) for column in zip(*texts, strict=True))
    ops.pool(up(x), first, count, out)
    return ops.device.read(out)


@pytest.mark.parametrize("width", [1, 31, 32, 100, 384])
def test_pool(ops: Ops, width: int) -> None:
    x = np.random.default_rng(width).standard_normal((320, width)).astype(F32)
    expected = [x[a : a + n].astype(float).mean(0) if n else np.zeros(width) for a, n in TEXTS]
    close(pooled(ops, x, TEXTS), np.array(expected), EPS["float32"])


def test_one_row_is_itself(ops: Ops) -> None:
    x = np.random.default_rng(0).standard_normal((9, 40)).astype(F32)
    np.testing.assert_array_equal(pooled(ops, x, [(7, 1), (2, 1)]), x[[7, 2]])


def test_bits_do_not_depend_on_the_position_of_the_rows(ops: Ops) -> None:
    x = np.random.default_rng(1).standard_normal((40, 48)).astype(F32)
    moved = np.concatenate([np.ones((13, 48), F32), x])
    np.testing.assert_array_equal(pooled(ops, x, [(1, 37)])[0], pooled(ops, moved, [(0, 5), (14, 37)])[1])


Call = Callable[[Ops, Callable], None]
BAD: list = [
    pytest.param(
        lambda ops, new: ops.pool(new((8, 4)), new(2, I32), new(2, I32), new((2, 5))),
        r"pool: expected x to be float32 \[8, 5\], found float32 \[8, 4\]",
        id="width",
    ),
    pytest.param(
        lambda ops, new: ops.pool(new((8, 4)), new(3, I32), new(2, I32), new((2, 4))),
        r"pool: expected first to be int32 \[2\], found int32 \[3\]",
        id="first",
    ),
    pytest.param(
        lambda ops, new: ops.pool(new((8, 4)), new(2, I32), new(2), new((2, 4))),
        r"pool: expected count to be int32 \[2\], found float32 \[2\]",
        id="count",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_pool_refuses(device: Device, call: Call, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        call(RowOps(device, F32), lambda shape, dtype=F32: device.upload(np.zeros(shape, dtype)))
