"""Launch shapes of attention: which heads the kernels take, and how their work is cut."""

from __future__ import annotations

from dataclasses import dataclass

from ..sizes import SPLITS
from .shapes import MEASURED

HEAD_SIZES = (16, 32, 48, 64, 80, 96, 112, 128, 192, 256)
PACKED_HEAD = 128  # largest head size of packed sequences: beyond it a pass for each costs too many registers

# Models whose decode attention is compiled for two blocks a multiprocessor, so that the next product can overlap it, by
# k/v heads, head size and bytes of T: the 1B gains by it, for the 135M it is 2 to 7 % slower, heads of 128 do not fit.
OVERLAP = {(8, 64, 2)}


def attend_blocks(kv_heads: int, head_dim: int, itemsize: int, arch: int) -> int:
    """Blocks of attend_decode.cu that a multiprocessor has registers for."""
    return 2 if arch == MEASURED and (kv_heads, head_dim, itemsize) in OVERLAP else 1


@dataclass(frozen=True)
class DecodeTile:
    """How attend_decode.cu<T, d, tiles> cuts its work; the same numbers as its Part and Merge."""

    tiles: int  # of 8 query heads in one block
    chunks: int  # blocks that share a k/v head
    tokens: int  # a block takes at a time
    shared: int  # bytes of shared memory

    @staticmethod
    def of(itemsize: int, d: int, group: int) -> DecodeTile:
        """For `group` query heads of size d a k/v head."""
        tiles = 2 if group > 8 and d <= 128 else 1
        ahead = itemsize * d * tiles <= 256
        return DecodeTile(
            tiles=tiles,
            chunks=-(-group // (8 * tiles)),
            tokens=8 * (32 if ahead and itemsize == 2 else 16),
            shared=8 * 4 * tiles * (d // 16) * 33 * 4,
        )

    def splits(self, tokens: int) -> int:
        """Most splits of a row that sees up to this many tokens."""
        return min(SPLITS, -(-tokens // self.tokens))


def prefill_shared(itemsize: int, d: int) -> int:
    """Bytes of shared memory of attend_prefill.cu<T, d>; the same numbers as its Tile."""
    line = itemsize * d
    keys = 16 if line > 512 else 32 if line > 256 else 64
    key_line = line + (128 + (64 if itemsize == 2 else 16) - line % 128) % 128
    size = keys * (key_line + line + 16)
    return 2 * size if 2 * size <= 96 * 1024 else size
