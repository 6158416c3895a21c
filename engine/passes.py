"""What prompts of a decoder and texts of an encoder have in common: how their rows are laid out in a pass.

Used by runner.py and encoder.py; NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .config import EngineConfig, ModelConfig
from .errors import RequestError
from .ops.base import PAGE


class Piece(NamedTuple):
    """Tokens of one sequence, the first of which stands at position `first`."""

    slot: int
    ids: Sequence[int]
    first: int = 0


def rows_of(pieces: Sequence[Piece], align: int = PAGE) -> int:
    """Rows that pieces take when each of them begins at a multiple of `align`. At PAGE no tile holds two sequences."""
    return sum(-(-len(piece.ids) // align) * align for piece in pieces)


def spare_rows(rows: int, spare: int) -> np.ndarray:
    """[4, rows] int32, Step's ids, seqs, positions, visible: token 0 of the spare sequence at 0, seeing itself."""
    return np.repeat(np.array([[0], [spare], [0], [1]], np.int32), rows, axis=1)


def fill(state: np.ndarray, pieces: Sequence[Piece], causal: bool, align: int = PAGE) -> list[int]:
    """Put pieces one after the other into spare rows [4, R]; the row of each one's first token.

    causal: a token sees those before it and itself; else all of its piece. align: as in rows_of."""
    starts, row = [], 0
    for piece in pieces:
        n = len(piece.ids)
        at = slice(row, row + n)
        state[0, at] = piece.ids
        state[1, at] = piece.slot
        state[2, at] = np.arange(piece.first, piece.first + n)
        state[3, at] = state[2, at] + 1 if causal else n
        starts.append(row)
        row += rows_of([piece], align)
    return starts


def expect_kind(c: ModelConfig, causal: bool) -> None:
    """RequestError unless the model is a decoder (causal), or an encoder."""
    if causal and not c.causal:
        raise RequestError(f"model: expected a decoder, which generates text, found an encoder ({c.arch}), "
                           "which embeds it")  # fmt: skip
    if c.causal and not causal:
        raise RequestError(f"model: expected an encoder, which embeds text, found a decoder ({c.arch}), "
                           "which has no pooling of its own")  # fmt: skip


def longest(c: ModelConfig, e: EngineConfig) -> int:
    """Tokens of the longest sequence. RequestError if more is asked for than the model was made for."""
    if e.max_len is not None and e.max_len > c.max_len:
        raise RequestError(f"max_len: expected at most {c.max_len}, what the model was made for, found {e.max_len}")
    return e.max_len or c.max_len
