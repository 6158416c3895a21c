"""The layout of rows in a pass, for prompts of a decoder and texts of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from ..sizes import PAGE


class Piece(NamedTuple):
    """Consecutive tokens of one sequence, from position `first` on."""

    slot: int
    ids: Sequence[int]
    first: int = 0


def rows_of(pieces: Sequence[Piece], align: int = PAGE) -> int:
    """Rows of all pieces when each starts at a multiple of `align`. With PAGE, no tile holds two sequences."""
    return sum(-(-len(piece.ids) // align) * align for piece in pieces)


def spare_rows(rows: int, spare: int) -> np.ndarray:
    """[4, rows] int32: Step's ids, seqs, positions and visible of padding rows, in slot `spare`."""
    return np.repeat(np.array([[0], [spare], [0], [1]], np.int32), rows, axis=1)


def fill(state: np.ndarray, pieces: Sequence[Piece], causal: bool, align: int = PAGE) -> np.ndarray:
    """Write pieces one after another into padding rows [4, R]. Returns [N]: the row of each one's first token.

    causal: a token attends to itself and earlier tokens, else to its whole piece. align: as in rows_of."""
    lengths = np.array([len(piece.ids) for piece in pieces])
    taken = -(-lengths // align) * align
    starts, before = np.cumsum(taken) - taken, np.cumsum(lengths) - lengths
    place = np.arange(lengths.sum()) - np.repeat(before, lengths)  # of a token in its piece
    row = np.repeat(starts, lengths) + place
    state[0, row] = np.fromiter(chain.from_iterable(piece.ids for piece in pieces), np.int32, len(row))
    state[1, row] = np.repeat([piece.slot for piece in pieces], lengths)
    state[2, row] = position = np.repeat([piece.first for piece in pieces], lengths) + place
    state[3, row] = position + 1 if causal else np.repeat(lengths, lengths)
    return starts
