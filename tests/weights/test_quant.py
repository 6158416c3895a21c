"""Decoding of quantised blocks, bit for bit against the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from ostinato.weights.quant import CHUNK, GGUF_KINDS, QUANTS, decode, decodes_to


@pytest.mark.parametrize("kind", sorted(QUANTS))
@pytest.mark.parametrize("shape", [(1, 32), (5, 96), (2, 3, 64)], ids=str)
def test_any_bytes_decode_as_the_package_does(kind: str, shape: tuple[int, ...]) -> None:
    size = QUANTS[kind][0]
    raw = np.random.default_rng(0).integers(0, 256, (np.prod(shape) // 32, size), np.uint8)
    raw[:, 1::2][:, : 2 if kind.endswith("1") else 1] &= 0x7B  # scales and offsets: finite
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    found = decode(kind, raw.reshape(-1), shape)
    assert found.dtype == decodes_to(kind) == np.float32
    assert found.shape == shape
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", sorted(QUANTS))
def test_numbers_come_back_within_half_a_step(kind: str) -> None:
    numbers = np.random.default_rng(1).uniform(-1, 1, (4, 256)).astype("f4")
    raw = gguf.quantize(numbers, gguf.GGMLQuantizationType[kind])
    step = {"Q8": 1 / 127, "Q4": 1 / 7, "Q5": 1 / 15}[kind[:2]]
    assert np.abs(decode(kind, raw.reshape(-1), numbers.shape) - numbers).max() < step


@pytest.mark.parametrize("kind", sorted(QUANTS))
def test_a_tensor_of_several_chunks_is_its_chunks(kind: str) -> None:
    size = QUANTS[kind][0]
    block = gguf.quantize(np.linspace(-1, 1, 32, dtype="f4")[None], gguf.GGMLQuantizationType[kind]).reshape(-1)
    raw = np.tile(block, 2 * CHUNK + 1)
    raw[-size:] = 0
    found = decode(kind, raw, (2 * CHUNK + 1, 32))
    assert np.all(found[:-1] == decode(kind, block, (1, 32)))
    assert np.all(found[-1] == 0)


def test_infinite_scale_is_what_the_file_says() -> None:
    block = np.zeros(34, np.uint8)
    block[:2], block[2] = np.array([np.inf], "<f2").view(np.uint8), 1
    found = decode("Q8_0", block, (32,))
    assert found[0] == np.inf and np.isnan(found[1:]).all()


@pytest.mark.parametrize("number", sorted(GGUF_KINDS))
def test_block_sizes_are_the_packages(number: int) -> None:
    kind, block, size = GGUF_KINDS[number]
    assert gguf.GGMLQuantizationType(number).name == kind
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block, size)
