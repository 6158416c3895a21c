"""How tensor data is stored: block sizes of every known kind, and decoding of the kinds the engine can use.

A block of the quantised kinds below is 32 numbers of a row: a float16
scale d (and offset m), then the quants q. Of 4 and 5 bits, byte j holds number j in its low half and number j + 16 in
its high half; the fifth bits of all 32 come first, as one 32-bit word.

    Q8_0  d q            Q4_0  d (q - 8)      Q4_1  d q + m      Q5_0  d (q - 16)     Q5_1  d q + m
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np

PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}

# GGUF's type number: (kind, numbers in a block, bytes of a block); 4, 5, 31 to 33 and 36 to 38 were withdrawn
GGUF_KINDS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

# bits of one number, by safetensors' dtype name
SAFETENSORS_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

CHUNK = 8192  # blocks decoded at a time: temporaries stay in the cache and never grow with the tensor


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """float16 at byte `at` of each block, as float32 [n, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(blocks: np.ndarray, at: int) -> np.ndarray:
    """The 32 four-bit quants that start at byte `at` of each block [n, 32] uint8."""
    packed = blocks[:, at : at + 16]
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fives(blocks: np.ndarray, at: int) -> np.ndarray:
    """The 32 five-bit quants whose high bits start at byte `at` of each block [n, 32] uint8."""
    high = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return _nibbles(blocks, at + 4) | high << 4


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), _half(blocks, 0), out=out)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_nibbles(blocks, 2).view(np.int8) - np.int8(8), _half(blocks, 0), out=out)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_nibbles(blocks, 4), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_fives(blocks, 2).view(np.int8) - np.int8(16), _half(blocks, 0), out=out)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    np.multiply(_fives(blocks, 4), _half(blocks, 0), out=out)
    out += _half(blocks, 2)


# kind: (bytes of a block of 32, decoder of blocks [n, bytes] uint8 into out [n, 32] float32)
QUANTS: dict[str, tuple[int, Callable[[np.ndarray, np.ndarray], None]]] = {
    "Q8_0": (34, _q8_0), "Q4_0": (18, _q4_0), "Q4_1": (20, _q4_1), "Q5_0": (22, _q5_0), "Q5_1": (24, _q5_1),
}  # fmt: skip


def decodes_to(kind: str) -> np.dtype | None:
    """What `decode` gives for a kind, or None if the engine cannot use it."""
    return PLAIN.get(kind, np.dtype(np.float32) if kind in QUANTS else None)


def decode(kind: str, raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a tensor. raw [bytes] uint8, contiguous -> [shape]: float32 for quantised kinds, else a view of raw
    (a copy if raw is not aligned for the type)."""
    if kind in PLAIN:
        plain = raw.view(PLAIN[kind]).reshape(shape)
        return plain if plain.flags.aligned else plain.copy()
    size, decoder = QUANTS[kind]
    blocks = raw.reshape(-1, size)
    out = np.empty((len(blocks), 32), np.float32)
    with np.errstate(invalid="ignore"):  # an infinite scale times 0 is NaN, as the file says
        for i in range(0, len(blocks), CHUNK):
            decoder(blocks[i : i + CHUNK], out[i : i + CHUNK])
    return out.reshape(shape)
