"""Operands that reveal the rounding of an instruction, the same on every machine, for gpu_fragments.py and its tests.

`cases` yields runs of every kernel of kernels/fragments.cu.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

LAYOUTS = {"bf16": (8, 7), "f16": (5, 10), "tf32": (8, 23)}  # exponent and mantissa bits; TF32 travels as float32
PRODUCTS = {"bf16": "run_mma_bf16_m16n8k16", "f16": "run_mma_f16_m16n8k16", "tf32": "run_mma_tf32_m16n8k8"}
KINDS = ("near", "wide", "all", "small", "small_large", "zeros", "cancel", "special", "zero_large")


def numbers(rng: np.random.Generator, layout: tuple[int, int], count: int, low: int, high: int) -> np.ndarray:
    """Bits of `count` numbers with random sign and mantissa and an exponent field of low to high."""
    exponent_bits, mantissa_bits = layout
    exponent = rng.integers(max(low, 0), min(high, (1 << exponent_bits) - 2) + 1, count, dtype=np.uint32)
    mantissa = rng.integers(0, 1 << mantissa_bits, count, dtype=np.uint32)
    sign = rng.integers(0, 2, count, dtype=np.uint32) << np.uint32(exponent_bits + mantissa_bits)
    return sign | exponent << np.uint32(mantissa_bits) | mantissa


def operand(rng: np.random.Generator, layout: tuple[int, int], kind: str, count: int, second: bool) -> np.ndarray:
    """Bits of `count` numbers for one operand of a product."""
    top = (1 << layout[0]) - 1
    bias = top // 2
    low, high = {
        "wide": (bias - 12, bias + 12),
        "all": (1, top - 1),
        "small": (0, 8) if layout[0] == 5 else (bias - 80, bias - 60),
        "small_large": (bias, bias + 20) if second else (0, 3),
    }.get(kind, (bias - 2, bias + 2))
    out = numbers(rng, layout, count, low, high)
    if kind == "zeros":
        out &= np.where(rng.random(count) < 0.7, np.uint32(1 << sum(layout)), np.uint32(0xFFFFFFFF))
    if kind == "special":
        chosen = rng.random(count) < 0.02
        infinity = np.uint32(top << layout[1])
        out = np.where(chosen, infinity | (rng.random(count) < 0.3).astype(np.uint32) << np.uint32(layout[1] - 1), out)
    return out.astype(np.uint32)


def sums(rng: np.random.Generator, count: int) -> np.ndarray:
    """Bits of float32 accumulators: zeros, ordinary numbers, distant exponents, random bits."""
    choice = rng.integers(0, 4, count)
    parts = [np.zeros(count, np.uint32)]
    parts += [numbers(rng, (8, 23), count, low, high) for low, high in ((124, 130), (100, 150), (0, 254))]
    return np.choose(choice, parts).astype(np.uint32)


def product(format: str, kind: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a [count, 32, 4], b [count, 32, 2] and d [count, 32, 4] as uint32 words of `count` warps."""
    rng = np.random.default_rng([sorted(LAYOUTS).index(format), KINDS.index(kind)])
    layout, pair = LAYOUTS[format], 1 if format == "tf32" else 2
    a = operand(rng, layout, kind, count * 128 * pair, False).reshape(count, 32, 4, pair)
    b = operand(rng, layout, kind, count * 64 * pair, True).reshape(count, 32, 2, pair)
    if kind == "cancel":  # the second half of k is mostly the negative of the first
        flip = (rng.random((count, 32, 1, 1)) < 0.8) & np.ones((1, 1, 2, pair), bool)
        a[:, :, 2:] = np.where(flip, a[:, :, :2] ^ np.uint32(1 << sum(layout)), a[:, :, 2:])
        b[:, :, 1] = b[:, :, 0]
    if kind == "zero_large":  # the first half of k: zeros times the largest numbers
        a[:, :, :2] = 0
        b[:, :, 0] = numbers(rng, layout, b[:, :, 0].size, 2 ** layout[0] - 10, 2 ** layout[0] - 3).reshape(
            b[:, :, 0].shape
        )
    d = sums(rng, count * 128).reshape(count, 32, 4)
    if pair == 2:
        a, b = (x[..., 0] | x[..., 1] << np.uint32(16) for x in (a, b))
    return a.reshape(count, 32, 4), b.reshape(count, 32, 2), d


def exponents(count: int) -> np.ndarray:
    """float32 arguments of 2^x [count]: dense in [-1, 1], wide, and the ends of the range."""
    rng = np.random.default_rng(7)
    ends = np.array([0, -0.0, 1, -1, 126, 127, 128, -125.5, -126, -127, -149, -200, 200, np.inf, -np.inf], np.float32)
    x = np.where(rng.random(count) < 0.5, rng.uniform(-1, 1, count), rng.uniform(-130, 130, count)).astype(np.float32)
    x[: len(ends)] = ends
    return x


def floats(count: int) -> np.ndarray:
    """Random float32 bits without NaN [count]."""
    rng = np.random.default_rng(8)
    return numbers(rng, (8, 23), count, 0, 254).view(np.float32)


class Case(NamedTuple):
    """One run of a kernel of kernels/fragments.cu."""

    label: str
    kernel: str
    block: int  # threads; the grid is the first size of the arrays
    arrays: list[np.ndarray]  # arguments
    output: int  # index of the output


def cases(count: int) -> Iterator[Case]:
    """Every run, with operands for `count` blocks."""
    for format, kernel in PRODUCTS.items():
        for kind in KINDS:
            yield Case(f"{format} {kind}", kernel, 32, list(product(format, kind, count)), 2)
    rng = np.random.default_rng(9)
    tiles = rng.integers(0, 1 << 32, (count, 32, 4), dtype=np.uint32)
    yield Case("ldmatrix", "run_ldmatrix", 32, [tiles, np.zeros((count, 32, 4), np.uint32)], 1)
    sizes = rng.integers(0, 17, (count, 32), dtype=np.int32)
    yield Case("cp_async", "run_cp_async", 32, [tiles, sizes, np.zeros((count, 32, 4), np.uint32)], 2)
    x = floats(256 * count).reshape(count, 256)
    yield Case("to_tf32", "run_to_tf32", 256, [x, np.zeros(x.shape, np.uint32)], 1)
    a, b = (rng.standard_normal((count, 32, n), dtype=np.float32) for n in (8, 4))
    yield Case("mma float", "run_mma_float", 32, [a, b, np.zeros((count, 32, 4), np.float32)], 2)
    x = exponents(256 * count).reshape(count, 256)
    yield Case("exp2", "run_exp2", 256, [x, np.zeros(x.shape, np.float32)], 1)
