"""The quantised block types of GGUF. A row is a sequence of blocks of 32, 64 or 256 numbers with their scales.

Q8_0 Q4_0 Q4_1 Q5_0 Q5_1, IQ4_NL, MXFP4: 32 numbers and a scale, and a minimum that is added in Q4_1 and Q5_1. Of 4 and
5 bits, byte j holds number j in its low half and number j + 16 in its high half; the fifth bits come first.

Q2_K to Q6_K, IQ4_XS: 256 numbers and one float16 scale d (Q2_K, Q4_K, Q5_K: dmin as well) for integer scales (and mins)
of 16 or 32 numbers each.

A decoder takes blocks [n, bytes] uint8 and returns the fields of Planes for them: codes [n, numbers of a block],
scales [n, scales of a block], ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .kinds import GGUF_KINDS
from .quantised import Planes, Quantised

Fields = dict[str, Any]  # of Planes; arrays are of blocks
_E2M1 = [0, 1, 2, 3, 4, 6, 8, 12]  # the values of FP4, doubled
FP4 = np.array(_E2M1 + [-v for v in _E2M1], np.int8)
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
E8M0 = np.ldexp(np.float32(0.5), np.arange(256) - 127).astype(np.float32)  # [256] half of 2^(e - 127)
E8M0[255] = np.nan
_m, _e = np.arange(128) % 8, np.arange(128) // 8
UE4M3 = np.tile(np.where(_e == 0, _m * 2.0**-10, (1 + _m / 8) * 2.0 ** (_e - 8.0)), 2).astype(np.float32)  # halved too
UE4M3[[127, 255]] = np.nan


def _halves(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of each block [n, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2")


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """[n, runs, bytes] -> [n, 2 runs bytes]: of every run of bytes, all low halves, then all high ones."""
    return _bits(packed, 4, 2)


def _run(blocks: np.ndarray, first: int, last: int, run: int) -> np.ndarray:
    """Bytes first .. last - 1 of each block in runs [n, runs, run]."""
    return blocks[:, first:last].reshape(len(blocks), (last - first) // run, run)


def _fives(blocks: np.ndarray, at: int) -> np.ndarray:
    """The 32 five-bit codes whose high bits start at byte `at` of each block [n, 32]."""
    high = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return _nibbles(_run(blocks, at + 4, at + 20, 16)) | high << 4


def _q8_0(b: np.ndarray) -> Fields:
    return {"code": "s8", "codes": b[:, 2:].view(np.int8), "scales": _halves(b, 0)}


def _q4_0(b: np.ndarray) -> Fields:
    return {"code": "u4", "codes": _nibbles(_run(b, 2, 18, 16)), "zero": 8, "scales": _halves(b, 0)}


def _q4_1(b: np.ndarray) -> Fields:
    return {"code": "u4", "codes": _nibbles(_run(b, 4, 20, 16)), "scales": _halves(b, 0), "mins": _halves(b, 2)}


def _q5_0(b: np.ndarray) -> Fields:
    return {"code": "u5", "codes": _fives(b, 2), "zero": 16, "scales": _halves(b, 0)}


def _q5_1(b: np.ndarray) -> Fields:
    return {"code": "u5", "codes": _fives(b, 4), "scales": _halves(b, 0), "mins": _halves(b, 2)}


def _iq4_nl(b: np.ndarray) -> Fields:
    return {"code": "s8", "codes": IQ4[_nibbles(_run(b, 2, 18, 16))], "scales": _halves(b, 0)}


def _mxfp4(b: np.ndarray) -> Fields:
    return {"code": "s8", "codes": FP4[_nibbles(_run(b, 1, 17, 16))], "scales": E8M0[b[:, :1]]}


def _nvfp4(b: np.ndarray) -> Fields:
    return {"code": "s8", "codes": FP4[_nibbles(_run(b, 4, 36, 8))], "scales": UE4M3[b[:, :4]]}


def _sixes(b: np.ndarray, at: int) -> Fields:
    """Scales and mins of Q4_K and Q5_K, eight of each, of 6 bits in 12 bytes [n, 8] uint8.

    The first four are the low 6 bits of a byte. Of the last four the low 4 bits share a byte, scale and minimum;
    the high 2 bits are the rest of the bytes of the first four."""
    low, mid, high = b[:, at : at + 12].copy().view("<u4").T  # four bytes at a time
    six, four, two = (np.uint32(0x01010101 * bits) for bits in (63, 15, 48))
    scales = np.stack([low & six, high & four | low >> 2 & two], axis=1)
    mins = np.stack([mid & six, high >> 4 & four | mid >> 2 & two], axis=1)
    return {"d": _halves(b, 0), "dmin": _halves(b, 2), "scales": scales.view(np.uint8), "mins": mins.view(np.uint8)}


def _bits(packed: np.ndarray, bits: int, count: int, at: int = 0) -> np.ndarray:
    """[n, runs, bytes] -> [n, runs count bytes]: of every run, the lowest bits of each byte, then the next ones.

    at: the bit of the result where they begin."""
    packed, mask = np.ascontiguousarray(packed), np.uint8((1 << bits) - 1)
    out = np.empty((len(packed), packed.shape[1], count, packed.shape[2]), np.uint8)
    for i in range(count):  # faster than all shifts by broadcasting, whose inner loops are one run long
        out[:, :, i] = (packed >> np.uint8(bits * i) & mask) << np.uint8(at)
    return out.reshape(len(packed), packed.shape[1] * count * packed.shape[2])


def _q4_k(b: np.ndarray) -> Fields:
    return {"code": "u4", "codes": _nibbles(_run(b, 16, 144, 32)), **_sixes(b, 4)}


def _q5_k(b: np.ndarray) -> Fields:
    codes = _nibbles(_run(b, 48, 176, 32))
    codes |= _bits(_run(b, 16, 48, 32), 1, 8, at=4)
    return {"code": "u5", "codes": codes, **_sixes(b, 4)}


def _q6_k(b: np.ndarray) -> Fields:
    codes = _nibbles(_run(b, 0, 128, 64))
    codes |= _bits(_run(b, 128, 192, 32), 2, 4, at=4)
    return {"code": "u6", "codes": codes, "zero": 32, "scales": b[:, 192:208].view(np.int8), "d": _halves(b, 208)}


def _q2_k(b: np.ndarray) -> Fields:
    codes = _bits(_run(b, 16, 80, 32), 2, 4)
    return {"code": "u4", "codes": codes, "d": _halves(b, 80), "dmin": _halves(b, 82), "scales": b[:, :16] & 15,
            "mins": b[:, :16] >> 4}  # fmt: skip


def _q3_k(b: np.ndarray) -> Fields:
    """Codes of 3 bits; scales of 6 bits less 32: low halves in 8 bytes, high 2 bits in 4."""
    codes = _bits(_run(b, 32, 96, 32), 2, 4) | _bits(_run(b, 0, 32, 32), 1, 8, at=2)
    scales = _nibbles(_run(b, 96, 104, 8)) | _bits(_run(b, 104, 108, 4), 2, 4, at=4)
    return {"code": "u4", "codes": codes, "zero": 4, "d": _halves(b, 108), "scales": scales.view(np.int8) - np.int8(32)}


def _iq4_xs(b: np.ndarray) -> Fields:
    """Scales of 6 bits less 32: low halves in 4 bytes, two a byte, high 2 bits in a word of 16."""
    low = np.stack([b[:, 4:8] & 15, b[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = _bits(_run(b, 2, 4, 1), 2, 4, at=4)
    scales = (low | high).view(np.int8) - np.int8(32)
    return {"code": "s8", "codes": IQ4[_nibbles(_run(b, 8, 136, 16))], "d": _halves(b, 0), "scales": scales}


class Kind(NamedTuple):
    """A block type: its sizes and its decoder."""

    numbers: int  # of a block
    bytes: int  # of a block
    decode: Callable[[np.ndarray], Fields]


_DECODERS = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q2_K": _q2_k, "Q3_K": _q3_k,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_NL": _iq4_nl, "IQ4_XS": _iq4_xs, "MXFP4": _mxfp4,
    "NVFP4": _nvfp4,
}  # fmt: skip
BLOCKS = {kind: Kind(n, size, _DECODERS[kind]) for kind, n, size in GGUF_KINDS.values() if kind in _DECODERS}


@dataclass(frozen=True)
class Blocks(Quantised):
    """A quantised matrix of a GGUF file. Every row is a whole number of blocks."""

    where: str
    kind: str  # of BLOCKS
    shape: tuple[int, int]
    raw: np.ndarray  # [rows of the file, bytes of a row] uint8
    order: np.ndarray | None = None  # [N] rows of `raw`; None: all of them as they are

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.raw.shape[1]

    def take(self, rows: np.ndarray) -> Blocks:
        order = np.asarray(rows) if self.order is None else self.order[rows]
        return replace(self, shape=(len(order), self.shape[1]), order=order)

    def _planes(self, first: int, last: int) -> Planes:
        kind, rows = BLOCKS[self.kind], max(0, last - first)
        raw = self.raw[first:last] if self.order is None else self.raw[self.order[first:last]]
        fields = kind.decode(raw.reshape(-1, kind.bytes))
        group = kind.numbers // fields["scales"].shape[1]
        arrays = {name: a.reshape(rows, self._width(a)) for name, a in fields.items() if isinstance(a, np.ndarray)}
        return Planes(group=group, **{**fields, **arrays})

    def _width(self, a: np.ndarray) -> int:
        """Columns of a row, for an array with a.shape[1] columns a block."""
        return self.shape[1] // BLOCKS[self.kind].numbers * a.shape[1]
