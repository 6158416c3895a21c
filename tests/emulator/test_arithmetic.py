"""The emulator's types, conversions and collectives against NumPy, and its mma against explicit sums."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from . import EmulatedDevice, build, fragments

KERNELS = Path(__file__).parent / "kernels"
CONVERSIONS = ["half_to_float", "bf16_to_float", "float_to_half", "float_to_bf16", "float_to_int", "float_to_u64"]
TOGETHER = {  # compiled into one library
    "arithmetic.cu": [[*CONVERSIONS, "multiply_high", "collectives"]],
}
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(scope="module")
def emulated(compiler) -> EmulatedDevice:
    return EmulatedDevice(directory=KERNELS, together=TOGETHER)


def run(device: EmulatedDevice, kernel: str, x: np.ndarray, dtype) -> np.ndarray:
    """Run a kernel with one thread per number."""
    out = device.empty(x.shape, np.dtype(dtype))
    device.launch(device.kernel("arithmetic.cu", kernel), (x.size // 256,), (256,), [device.upload(x), out])
    return device.read(out)


def floats() -> np.ndarray:
    """Random bits, every half and its adjacent floats, and the midpoints between two halves."""
    rng = np.random.default_rng(0)
    near = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32)
    random = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    bits = np.concatenate([near, near + 1, near - 1, near + 0x1000, near + 0x8000, random])
    return bits[: bits.size // 256 * 256].view(np.float32)


@pytest.mark.parametrize(("kernel", "dtype"), [("half_to_float", np.dtype(np.float16)), ("bf16_to_float", BF16)])
def test_widening_is_exact(emulated, kernel, dtype):
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    np.testing.assert_array_equal(run(emulated, kernel, x, np.float32), x.astype(np.float32))


@pytest.mark.parametrize(("kernel", "dtype"), [("float_to_half", np.dtype(np.float16)), ("float_to_bf16", BF16)])
def test_narrowing_rounds_to_even(emulated, kernel, dtype):
    x = floats()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    found, number = run(emulated, kernel, x, dtype), ~np.isnan(x)
    np.testing.assert_array_equal(found.view(np.uint16)[number], expected.view(np.uint16)[number])
    assert (found.view(np.uint16)[~number] == 0x7FFF).all()


@pytest.mark.parametrize(
    ("kernel", "dtype", "x", "expected"),
    [
        pytest.param("float_to_int", np.int32, [1.9, -1.9, 3e9, -3e9, np.nan], [1, -1, 2**31 - 1, -(2**31), 0]),
        pytest.param("float_to_u64", np.uint64, [1.9, -1.9, 2e9, 1e20, np.nan], [1, 0, 2 * 10**9, 2**64 - 1, 0]),
    ],
    ids=["int", "u64"],
)
def test_float_to_integer_saturates(emulated, kernel, dtype, x, expected):
    found = run(emulated, kernel, np.resize(np.array(x, np.float32), 256), dtype)[: len(x)]
    assert found.tolist() == expected


def test_multiply_high(emulated):
    x = np.random.default_rng(1).integers(0, 1 << 32, 256, dtype=np.uint32)
    expected = x.astype(np.uint64) * np.uint64(0xD2511F53) >> np.uint64(32)
    np.testing.assert_array_equal(run(emulated, "multiply_high", x, np.uint32), expected)


@pytest.mark.parametrize("schedules", [1, 4])
def test_collectives(compiler, schedules):
    device = EmulatedDevice(schedules, KERNELS, TOGETHER)
    x = np.arange(64, dtype=np.int32)
    out = device.empty((16, 64), np.dtype(np.int32))
    device.launch(device.kernel("arithmetic.cu", "collectives"), (1,), (64,), [device.upload(x), out])
    lane, warp = x % 32, x // 32 * 32
    odd = np.int32(np.uint32(0xAAAAAAAA).view(np.int32))
    expected = [
        warp + 5, x // 8 * 8 + (x + 1) % 8, x ^ 3, np.where(lane + 4 < 32, x + 4, x),
        np.where(lane % 16 + 3 < 16, x + 3, x), np.where(lane >= 4, x - 4, x), np.where(lane % 4 >= 1, x - 1, x),
        np.full(64, odd), x >= 32, x < 32,
        np.where(x < 32, 496, 496 + 1024), np.where(x < 32, 31, 63), np.full(64, 32), np.full(64, 1), np.full(64, 0),
        np.where(lane >= 20, x ^ 1, x),
    ]  # fmt: skip
    for row, (found, wanted) in enumerate(zip(device.read(out), expected, strict=True)):
        assert found.tolist() == wanted.astype(np.int32).tolist(), f"row {row}"


@pytest.mark.parametrize("format", ["bf16", "f16", "tf32"])
def test_tensor_core_is_near_the_exact_sum(compiler, format):
    a, b, d = fragments.product(format, "near", 4)
    device = EmulatedDevice(directory=KERNELS)
    held = [device.upload(x) for x in (a, b, d & np.uint32(0))]
    device.launch(device.kernel("fragments.cu", fragments.PRODUCTS[format]), (4,), (32,), held)
    for warp in range(4):
        rows, columns = matrices(format, a[warp], b[warp])
        found = held[2][warp].view(np.float32)
        for lane in range(32):
            g, q = lane // 4, lane % 4
            for i, (m, n) in enumerate([(g, 2 * q), (g, 2 * q + 1), (g + 8, 2 * q), (g + 8, 2 * q + 1)]):
                size = np.abs(rows[m]) @ np.abs(columns[n])
                assert abs(found[lane, i] - rows[m] @ columns[n]) <= size * 2.0**-22


def matrices(format: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 16 rows of A and the 8 columns of B that the registers a [32, 4] and b [32, 2] of a warp hold, as float64."""
    lanes = np.arange(32)
    g, q = lanes // 4, lanes % 4
    if format == "tf32":
        rows, columns = np.zeros((16, 8)), np.zeros((8, 8))
        value = lambda words: (words & np.uint32(0xFFFFE000)).view(np.float32)  # noqa: E731
        for register in range(4):
            rows[g + register % 2 * 8, q + register // 2 * 4] = value(a[:, register])
        for register in range(2):
            columns[g, q + register * 4] = value(b[:, register])
        return rows, columns
    dtype = np.dtype(np.float16) if format == "f16" else BF16
    rows, columns = np.zeros((16, 16)), np.zeros((8, 16))
    for half in range(2):
        for register in range(4):
            rows[g + register % 2 * 8, 2 * q + half + register // 2 * 8] = a.view(dtype)[:, 2 * register + half]
        for register in range(2):
            columns[g, 2 * q + half + register * 8] = b.view(dtype)[:, 2 * register + half]
    return rows, columns


def test_no_compiler(monkeypatch):
    build.compiler.cache_clear()
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert build.compiler() is None
    build.compiler.cache_clear()
