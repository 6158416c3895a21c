"""GGUF's quantised types, bit for bit against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from checkpoint_files import FLOATS, SMALL, random_blocks

from ostinato.errors import CheckpointError
from ostinato.weights import quantised
from ostinato.weights.blocks import BLOCKS, Blocks
from ostinato.weights.kinds import GGUF_KINDS
from ostinato.weights.quantised import Planes

each = pytest.mark.parametrize("kind", sorted(BLOCKS))


def matrix(kind: str, rows: int, blocks: int, seed: int = 0) -> Blocks:
    return random_blocks(kind, rows, blocks * BLOCKS[kind].numbers, seed)


def planes(m: Blocks, *rows: int) -> Planes:
    found = m.planes(*rows)
    assert found is not None
    return found


def packages(m: Blocks) -> np.ndarray:
    with np.errstate(over="ignore"):  # of MXFP4's largest powers of two
        return gguf.dequantize(m.raw, gguf.GGMLQuantizationType[m.kind]).reshape(m.shape)


@each
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 2)], ids=str)
def test_any_bytes_decode_as_the_package_does(kind: str, shape: tuple[int, int]) -> None:
    m = matrix(kind, *shape)
    found = m.numbers()
    assert found.dtype == np.float32 and found.shape == m.shape
    assert found.tobytes() == packages(m).astype("f4").tobytes()


@each
def test_every_byte_counts(kind: str) -> None:
    """Changing any byte of a block changes a number of it, in the package as here."""
    m = matrix(kind, 1, 1, seed=2)
    m.raw[m.raw == 0] = 1
    for at in range(m.raw.shape[1]):
        raw = m.raw.copy()
        raw[0, at] ^= 0x01
        other = Blocks(m.where, kind, m.shape, raw)
        assert np.any(other.numbers() != m.numbers())
        assert other.numbers().tobytes() == packages(other).astype("f4").tobytes()


@each
def test_planes_are_the_numbers(kind: str) -> None:
    """By the formula written out, in float32; and their codes are what their name says."""
    m = matrix(kind, 6, 2)
    p = planes(m)
    k, most = m.shape[1], {"u4": 15, "u5": 31, "u6": 63}.get(p.code)
    assert p.codes.dtype == (np.int8 if most is None else np.uint8) and (most is None or p.codes.max() <= most)
    n, group = np.arange(6)[:, None], np.arange(k) // p.group
    s, m_ = p.scales.astype("f4")[n, group], np.float32(0)
    if p.d is not None:
        s = p.d.astype("f4")[n, np.arange(k) // 256] * s
    w = s * (p.codes.astype("f4") - np.float32(p.zero))
    if p.mins is not None:
        m_ = p.mins.astype("f4")[n, group]
        if p.dmin is not None:
            m_ = -(p.dmin.astype("f4")[n, np.arange(k) // 256] * m_)
        w = w + m_
    np.testing.assert_array_equal(w, m.numbers())
    assert (planes(m, 0, 0).code, planes(m, 0, 0).scales.dtype) == (p.code, p.scales.dtype)


@each
def test_some_rows_and_rows_in_another_order_are_those_rows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m, order = matrix(kind, 9, 1), np.array([3, 8, 0, 3])
    monkeypatch.setattr(quantised, "CHUNK", 2 * m.shape[1])  # two rows a chunk
    whole = m.numbers()
    np.testing.assert_array_equal(whole, packages(m))
    np.testing.assert_array_equal(m.numbers(2, 7), whole[2:7])
    taken = m.take(np.arange(9)[::-1]).take(order)
    assert (taken.shape, taken.nbytes) == ((4, m.shape[1]), 4 * m.raw.shape[1])
    np.testing.assert_array_equal(taken.numbers(), whole[::-1][order])
    np.testing.assert_array_equal(planes(taken, 1, 3).numbers(), whole[::-1][order][1:3])
    into = np.zeros((4, m.shape[1]), "f4")
    assert taken.numbers(out=into) is into and np.array_equal(into, taken.numbers())


BAD = [(kind, at, bad) for kind in sorted(BLOCKS) for at in FLOATS[kind] for bad in (np.inf, -np.inf, np.nan)]


@pytest.mark.parametrize(
    ("kind", "at", "raw"),
    [pytest.param(kind, at, np.float16(bad).tobytes(), id=f"{kind} {at} {bad}") for kind, at, bad in BAD]
    + [pytest.param("MXFP4", 0, b"\xff", id="MXFP4 NaN")]
    + [pytest.param("NVFP4", at, bytes([bad]), id=f"NVFP4 {at} {bad}") for at in range(4) for bad in (127, 255)],
)
def test_a_scale_that_is_no_number_is_refused(kind: str, at: int, raw: bytes) -> None:
    m = matrix(kind, 5, 3)
    m.raw[3, BLOCKS[kind].bytes + at :][: len(raw)] = np.frombuffer(raw, np.uint8)
    m.numbers(0, 3)
    for use in (m.numbers, m.planes, lambda: m.numbers(2, 4), lambda: m.take(np.arange(5)).numbers()):
        with pytest.raises(CheckpointError, match=r"x\.gguf: tensor t: (scales|mins|d|dmin) of row 3, place"):
            use()


@each
def test_every_flipped_bit_is_decoded_or_refused(kind: str) -> None:
    """Without a warning, and with the numbers of the package where it is decoded."""
    m = matrix(kind, 1, 1, seed=3)
    refusals = 0
    for bit in range(8 * m.raw.size):
        raw = m.raw.copy()
        raw[0, bit // 8] ^= 1 << bit % 8
        other = Blocks(m.where, kind, m.shape, raw)
        try:
            found = other.numbers()
        except CheckpointError as e:
            assert str(e).startswith(m.where)
            refusals += 1
            continue
        assert found.tobytes() == packages(other).astype("f4").tobytes()
    assert refusals <= 8  # a bit of a scale


@each
def test_a_scale_of_zero_is_a_block_of_zeros(kind: str) -> None:
    m = matrix(kind, 1, 1)
    for at in FLOATS[kind]:
        m.raw[0, at : at + 2] = 0
    for at in SMALL.get(kind, []):
        m.raw[0, at] = 0
    assert kind == "MXFP4" or not m.numbers().any()  # there the smallest power of two


@pytest.mark.parametrize("number", sorted(set(GGUF_KINDS) - {42}))  # 42 is newer than the package
def test_block_sizes_are_the_packages(number: int) -> None:
    kind, block, size = GGUF_KINDS[number]
    assert gguf.GGMLQuantizationType(number).name == kind
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block, size)
