"""Pages of the KV cache to host memory and back, against the NumPy definition, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from rows import F32, I32, TYPES, RowOps

from ostinato.errors import DeviceError
from ostinato.ops.numpy import NumpyOps

CASES = [  # layers, pages, kv heads, d, (page, place) ...
    pytest.param(1, 3, 1, 16, [(1, 0)], id="one page"),
    pytest.param(2, 7, 2, 16, [(5, 1), (1, 4), (6, 0)], id="in any order"),
    pytest.param(1, 4, 3, 80, [(3, 2), (2, 3)], id="more than a block has threads for"),
]


def arrays(layers: int, pages: int, heads: int, d: int, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A pool and host memory of 5 places; NaNs and infinities among them."""
    rng = np.random.default_rng(7)
    shapes = (2 * layers, pages, heads, 64, d), (5, 2 * layers, heads, 64, d)
    bits = np.dtype(f"u{dtype.itemsize}")
    pool, host = (rng.integers(0, np.iinfo(bits).max, shape, bits, endpoint=True).view(dtype) for shape in shapes)
    return pool, host


@pytest.mark.parametrize("op", ["save_pages", "load_pages"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("layers", "pages", "heads", "d", "moved"), CASES)
def test_bytes_are_copied(
    device, op: str, dtype: str, layers: int, pages: int, heads: int, d: int, moved: list
) -> None:
    kind = TYPES[dtype]
    pool, host = arrays(layers, pages, heads, d, kind)
    here, there = np.array(moved, np.int32).T.copy()
    on_device = device.upload(pool)
    seen, mapped = device.pinned(host.shape, kind)
    seen[...] = host
    getattr(RowOps(device, kind), op)(on_device, mapped, device.upload(here), device.upload(there))
    getattr(NumpyOps(), op)(pool, host, here, there)
    assert device.read(on_device).tobytes() == pool.tobytes()
    assert seen.tobytes() == host.tobytes()


def test_order_of_threads_does_not_matter(shuffled) -> None:
    pool, host = arrays(1, 4, 2, 32, F32)
    mapped = shuffled.pinned(host.shape, F32)[1]
    mapped[...] = host
    pages, places = (shuffled.upload(np.array(numbers, I32)) for numbers in ([1, 3], [0, 2]))
    RowOps(shuffled, F32).save_pages(shuffled.upload(pool), mapped, pages, places)
    assert mapped[2].tobytes() == pool[:, 3].tobytes()


WRONG = [
    pytest.param(
        (2, 3, 1, 64, 16), (5, 4, 1, 64, 16), I32, r"save_pages: expected host to be float32 \[5, 2,", id="layers"
    ),
    pytest.param((2, 3, 1, 64, 16), (5, 2, 1, 64, 32), I32, r"save_pages: expected host to be float32", id="page"),
    pytest.param(
        (2, 3, 1, 64, 16), (5, 2, 1, 64, 16), np.dtype(np.int64), r"expected pages to be int32 \[1\]", id="pages"
    ),
]


@pytest.mark.parametrize(("pool", "host", "kind", "message"), WRONG)
def test_errors_name_the_argument(device, pool: tuple, host: tuple, kind: np.dtype, message: str) -> None:
    one = device.upload(np.array([1], kind))
    with pytest.raises(DeviceError, match=message):
        RowOps(device, F32).save_pages(device.empty(pool, F32), device.pinned(host, F32)[1], one, one)
