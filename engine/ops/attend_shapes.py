"""Launch shapes of the attention kernels: supported head sizes, splits, shared memory."""

from __future__ import annotations

from dataclasses import dataclass

from ..sizes import SPLITS
from .shapes import MEASURED

HEAD_SIZES = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256)
PACKED_HEAD = 128  # largest head size of attend_prefill<PACKED>: larger ones need too many registers

# (k/v heads, head size, bytes of T) of models whose decode attention is compiled for two blocks per SM, so that the
# next GEMM can overlap. The 1B gains by it; for the 135M it is 2 to 7 % slower; heads of 128 do not fit.
OVERLAP = {(8, 64, 2)}


def attend_blocks(kv_heads: int, head_dim: int, itemsize: int, arch: int) -> int:
    """Blocks of attend_decode.cu per SM that registers must allow."""
    return 2 if arch == MEASURED and (kv_heads, head_dim, itemsize) in OVERLAP else 1


@dataclass(frozen=True)
class DecodeTile:
    """How attend_decode<T, d, tiles> divides its work; mirrors Part and Merge in kernels/."""

    tiles: int  # tiles of 8 query heads per block
    chunks: int  # blocks per k/v head
    tokens: int  # tokens per tile of a block
    shared: int  # bytes of shared memory

    @staticmethod
    def of(itemsize: int, d: int, group: int) -> DecodeTile:
        """The tile for `group` query heads of size d per k/v head."""
        tiles = 2 if group > 8 and d <= 128 else 1
        ahead = itemsize * d * tiles <= 256
        return DecodeTile(
            tiles=tiles,
            chunks=-(-group // (8 * tiles)),
            tokens=8 * (32 if ahead and itemsize == 2 else 16),
            shared=8 * 4 * tiles * (d // 16) * 33 * 4,
        )

    def splits(self, tokens: int) -> int:
        """Maximum number of splits of a row with up to this many tokens."""
        return min(SPLITS, -(-tokens // self.tokens))


def prefill_shared(itemsize: int, d: int) -> int:
    """Bytes of shared memory of attend_prefill<T, d>; mirrors Tile in kernels/attend_prefill.cu."""
    line = itemsize * d
    keys = 16 if line > 512 else 32 if line > 256 else 64
    key_line = line + (128 + (64 if itemsize == 2 else 16) - line % 128) % 128
    size = keys * (key_line + line + 16)
    return 2 * size if 2 * size <= 96 * 1024 else size
